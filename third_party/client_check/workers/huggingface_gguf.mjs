// @huggingface/gguf: metadata and tensor list as the Hub's pages show them.
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { load, request, serve } from "./answer.mjs";

const wish = request();
const { gguf } = await load("@huggingface/gguf");

function plain(value) {
  if (Array.isArray(value)) return value.map(plain);
  return typeof value === "string" ? value : String(value);
}

await serve(wish, async (item) => {
  const { metadata, tensorInfos } = await gguf(item.file, { allowLocalFile: true });
  const header = {
    metadata: Object.fromEntries(Object.entries(metadata).map(([name, value]) => [name, plain(value)])),
    tensors: tensorInfos.map((tensor) => ({
      name: tensor.name,
      shape: tensor.shape.map(String),
      type: tensor.dtype,
      offset: String(tensor.offset),
    })),
  };
  const path = join(item.scratch, `${item.label}.json`);
  writeFileSync(path, JSON.stringify(header));
  return { header: path };
});
