// What every Node.js worker shares: read the request, find the package, print an answer for each file.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

export function request() {
  return JSON.parse(readFileSync(process.argv[2], "utf8"));
}

export function modules() {
  return process.env.CLIENT_MODULES;
}

export async function load(name) {
  const folder = join(modules(), name);
  const described = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
  const entry = described.exports?.["."]?.import ?? described.module ?? described.main;
  return import(pathToFileURL(join(folder, entry)).href);
}

export async function serve(wish, read) {
  for (const item of wish.files) {
    let fields;
    try {
      fields = await read({ ...wish, ...item });
    } catch (error) {
      fields = { error: String(error?.message ?? error).trim().split("\n")[0].slice(0, 240) };
    }
    process.stdout.write("\nRESULT " + JSON.stringify({ label: item.label, ...fields }) + "\n");
  }
}
