// node-llama-cpp: llama.cpp's prebuilt CPU binary, one greedy token after another.
import { load, request, serve } from "./answer.mjs";

const wish = request();
const { getLlama, LlamaLogLevel } = await load("node-llama-cpp");
const llama = await getLlama({
  gpu: false,
  build: "never",
  skipDownload: true,
  maxThreads: 1,
  progressLogs: false,
  logLevel: LlamaLogLevel.error,
});

await serve(wish, async (item) => {
  const model = await llama.loadModel({ modelPath: item.file, gpuLayers: 0, useMmap: true });
  const context = await model.createContext({ contextSize: 256, sequences: 1, threads: 1 });
  const sequence = context.getSequence();
  const prompt = model.tokenize(item.prompt);
  if (model.tokens.shouldPrependBosToken) prompt.unshift(model.tokens.bos);
  const made = [];
  for await (const token of sequence.evaluate(prompt, { temperature: 0 })) {
    if (model.isEogToken(token)) break;
    made.push(token);
    if (made.length >= item.tokens) break;
  }
  const text = model.detokenize(made, false, prompt);
  await context.dispose();
  await model.dispose();
  return { text };
});
process.exit(0);
