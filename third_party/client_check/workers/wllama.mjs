// @wllama/wllama: llama.cpp as WebAssembly in headless Chromium, one thread, no graphics card.
//
// A server on the loopback address hands the page the package, the files and the questions; the page sends the
// answers back. Chromium ends with this process.
import { spawn } from "node:child_process";
import { createReadStream, existsSync } from "node:fs";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";
import { modules, request } from "./answer.mjs";

const wish = request();
const root = join(modules(), "@wllama", "wllama", "esm");
const KINDS = { ".js": "text/javascript", ".wasm": "application/wasm" };

const page = `<!doctype html><meta charset="utf-8"><title>wllama</title><script type="module">
import { Wllama } from "/esm/index.js";
const wish = await (await fetch("/wish")).json();
for (const [index, item] of wish.files.entries()) {
  let fields;
  const wllama = new Wllama({ default: "/esm/wasm/wllama.wasm" }, { suppressNativeLog: true });
  try {
    const blob = await (await fetch("/file/" + index)).blob();
    await wllama.loadModel([blob], { n_ctx: 256, n_threads: 1, n_gpu_layers: 0, warmup: false, seed: 1 });
    const made = await wllama.createCompletion({
      prompt: item.prompt, max_tokens: wish.tokens, temperature: 0, top_k: 1, stream: false,
    });
    fields = { text: made.choices[0].text };
  } catch (error) {
    fields = { error: String(error?.message ?? error).trim().split("\\n")[0].slice(0, 240) };
  }
  try { await wllama.exit(); } catch {}
  await fetch("/answer", { method: "POST", body: JSON.stringify({ label: item.label, ...fields }) });
}
await fetch("/done", { method: "POST" });
</script>`;

let browser;

function finish() {
  browser?.kill("SIGKILL");
  process.exit(0);
}

const server = createServer((incoming, outgoing) => {
  const path = normalize(decodeURIComponent(new URL(incoming.url, "http://x").pathname));
  if (incoming.method === "POST") {
    let body = "";
    incoming.on("data", (part) => (body += part));
    incoming.on("end", () => {
      outgoing.end();
      if (path === "/answer") process.stdout.write("\nRESULT " + body + "\n");
      if (path === "/done") finish();
    });
  } else if (path === "/") {
    outgoing.writeHead(200, { "content-type": "text/html" }).end(page);
  } else if (path === "/wish") {
    outgoing.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify(wish));
  } else if (path.startsWith("/file/") && wish.files[Number(path.slice(6))]) {
    outgoing.writeHead(200, { "content-type": "application/octet-stream" });
    createReadStream(wish.files[Number(path.slice(6))].file).pipe(outgoing);
  } else if (path.startsWith("/esm/") && existsSync(join(root, path.slice(5)))) {
    outgoing.writeHead(200, { "content-type": KINDS[extname(path)] ?? "application/octet-stream" });
    createReadStream(join(root, path.slice(5))).pipe(outgoing);
  } else {
    outgoing.writeHead(404).end();
  }
});

server.listen(0, "127.0.0.1", () => {
  const options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"];
  options.push("--disable-background-networking", "--disable-sync", "--disable-component-update");
  options.push(`--user-data-dir=${join(wish.scratch, "browser")}`);
  browser = spawn(process.env.CLIENT_CHROMIUM, [...options, `http://127.0.0.1:${server.address().port}/`], {
    stdio: "ignore",
  });
  browser.on("exit", () => process.exit(1));
});
