// Prints, for every dataset of an HDF5 file, its shape and the SHA-256 of its values.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import h5wasm from "h5wasm/node";

await h5wasm.ready;
const file = new h5wasm.File(process.argv[2], "r");

function bytesOf(data) {
  if (ArrayBuffer.isView(data)) return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  return data.map((text) => `${text}\n`).join("");
}

const found = {};
for (const group of file.keys()) {
  for (const name of file.get(group).keys()) {
    const dataset = file.get(`${group}/${name}`);
    const empty = dataset.shape.includes(0);
    const digest = createHash("sha256")
      .update(empty ? "" : bytesOf(dataset.value))
      .digest("hex");
    found[`${group}/${name}`] = { shape: dataset.shape.map(Number), digest };
  }
}
const { version } = JSON.parse(
  readFileSync(new URL("./node_modules/h5wasm/package.json", import.meta.url), "utf8"),
);
console.log(JSON.stringify({ version: `${version}, Node ${process.versions.node}`, found }));
