// The Hub's own GGUF parser on the Node of its environment: answers requests as serve.py does.
// The arguments are the number of the pipe for replies and the folder of the environment.

import { createRequire } from "node:module";
import { writeSync } from "node:fs";
import { createInterface } from "node:readline";

const [pipe, home] = process.argv.slice(2);
const { gguf } = createRequire(`${home}/`)("@huggingface/gguf");

// integers of 64 bits as text, floats that JSON does not have by name
function plain(key, value) {
  if (typeof value === "bigint") return `${value}`;
  if (typeof value === "number" && !Number.isFinite(value)) return `${value}`;
  return value;
}

async function header({ file }) {
  const found = await gguf(file, { typedMetadata: true, allowLocalFile: true });
  return {
    metadata: found.typedMetadata,
    tensors: found.tensorInfos,
    data: found.tensorDataOffset,
  };
}

for await (const line of createInterface({ input: process.stdin })) {
  const { arguments: given } = JSON.parse(line);
  let reply;
  try {
    reply = { answer: await header(given) };
  } catch (error) {
    reply = { error: error.stack };
  }
  const bytes = Buffer.from(`${JSON.stringify(reply, plain)}\n`);
  for (let done = 0; done < bytes.length; ) done += writeSync(Number(pipe), bytes, done);
}
