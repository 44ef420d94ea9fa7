// Runs an exported .tflite file on a picture with LiteRT.js and shows the most likely classes.
//
// The model normalises pixels itself: it takes 0 to 255, as float32 or uint8. Behind the model the
// export puts a zip archive into the file, as TFLite's metadata has it: `labels.txt` with the names
// of the classes, and `preprocessing.json`, which says how pictures are cropped.

import { loadAndCompile, loadLiteRt, Tensor } from "@litertjs/core";

const TOP = 5;
const byId = (id) => document.getElementById(id);
const litert = loadLiteRt(new URL("node_modules/@litertjs/core/wasm/", document.baseURI).href);
let model = null; // {compiled, labels, rule}
let queue = Promise.resolve(); // one change after the other

function tell(state, text) {
  byId("status").dataset.state = state;
  byId("status").textContent = text;
}

// Texts of the files in the archive at the end of `bytes`, by name; none where there is no archive.
function readArchive(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const text = (from, length) => new TextDecoder().decode(bytes.subarray(from, from + length));
  const files = {};
  const end = bytes.length - 22; // of an archive without comment
  if (end < 0 || view.getUint32(end, true) !== 0x06054b50) return files;
  let at = end - view.getUint32(end + 12, true); // of the directory
  // Writers count offsets from the start of the archive or from the start of the file.
  const archive = at - view.getUint32(end + 16, true);
  for (let left = view.getUint16(end + 10, true); left > 0; left--) {
    const [nameLength, extra, comment] = [28, 30, 32].map((o) => view.getUint16(at + o, true));
    const isStored = view.getUint16(at + 10, true) === 0;
    const header = archive + view.getUint32(at + 42, true);
    const lengths = view.getUint16(header + 26, true) + view.getUint16(header + 28, true);
    if (isStored) {
      files[text(at + 46, nameLength)] = text(header + 30 + lengths, view.getUint32(at + 20, true));
    }
    at += 46 + nameLength + extra + comment;
  }
  return files;
}

// Sets the batch size to one where the file leaves it open, in place: LiteRT.js resizes no inputs and
// refuses a tensor of one picture for a batch of -1. Tables are those of TFLite's schema.fbs: a
// model's field 2 is its subgraphs, their field 0 the tensors, whose field 7 is the shape with -1.
function fixBatch(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.length < 8 || new TextDecoder().decode(bytes.subarray(4, 8)) !== "TFL3") return;
  const follow = (at) => at + view.getUint32(at, true);
  const elements = (vector) =>
    Array.from({ length: view.getUint32(vector, true) }, (_, i) => vector + 4 + 4 * i);
  const field = (table, index) => {
    const fields = table - view.getInt32(table, true);
    const slot = 4 + 2 * index;
    const isThere = slot < view.getUint16(fields, true) && view.getUint16(fields + slot, true);
    return isThere ? elements(follow(table + isThere)) : [];
  };
  for (const subgraph of field(follow(0), 2).map(follow)) {
    for (const tensor of field(subgraph, 0).map(follow)) {
      for (const side of field(tensor, 7)) {
        if (view.getInt32(side, true) === -1) view.setInt32(side, 1, true);
      }
    }
  }
}

// Left, top, width and height of the part of a picture that the model sees: the rule of
// `efficientnet_tf.preprocessing.Preprocessing`, or the whole centre square without one.
function region(width, height, rule) {
  if (rule?.crop === "squash") return [0, 0, width, height];
  let ratio = 1;
  if (rule) {
    const fraction = rule.crop_fraction;
    const padding = rule.crop === "fraction" ? Math.round(rule.size * (1 / fraction - 1)) : 32;
    ratio = rule.size / (rule.size + padding);
  }
  const side = Math.floor(ratio * Math.min(width, height));
  const round = rule?.crop === "pad32_floor" ? Math.floor : Math.ceil;
  return [round((width - side) / 2), round((height - side) / 2), side, side];
}

// The picture, drawn on the page as the model sees it: its RGB values, 0 to 255. The browser's
// interpolation is its own, so that answers differ a little where the picture has another size.
async function pixels(file, height, width, rule) {
  // Without colour management: the model was trained on the values that are in the files.
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const bitmap = await createImageBitmap(file, options);
  const canvas = byId("seen");
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, ...region(bitmap.width, bitmap.height, rule), 0, 0, width, height);
  bitmap.close();
  return context.getImageData(0, 0, width, height).data.filter((_, i) => i % 4 !== 3);
}

// Probabilities of all classes, and the milliseconds that they took.
async function classify({ compiled, rule }, file) {
  const [{ shape, dtype }] = compiled.getInputDetails();
  const [, height, width] = shape;
  const rgb = await pixels(file, height, width, rule);
  const values = dtype === "uint8" ? new Uint8Array(rgb) : Float32Array.from(rgb);
  const input = new Tensor(values, [1, height, width, 3]);
  const start = performance.now();
  const outputs = await compiled.run([input]);
  const answer = await outputs[0].data();
  const milliseconds = performance.now() - start;
  // Quantised probabilities are in units of 1/256.
  const unit = answer instanceof Uint8Array ? 1 / 256 : 1;
  const scores = Array.from(answer, (value) => value * unit);
  for (const tensor of [input, ...outputs]) tensor.delete();
  return { scores, milliseconds };
}

function show(scores, labels) {
  const best = scores.map((score, id) => ({ score, id })).sort((a, b) => b.score - a.score);
  const rows = best.slice(0, TOP).map(({ score, id }) => {
    const row = document.createElement("tr");
    const [name, bar, share] = ["th", "td", "td"].map((tag) => document.createElement(tag));
    name.scope = "row";
    name.textContent = labels[id] ?? `class ${id}`;
    bar.append(Object.assign(document.createElement("meter"), { value: score }));
    share.textContent = `${(100 * score).toFixed(1)} %`;
    row.append(name, bar, share);
    return row;
  });
  byId("answers").replaceChildren(...rows);
}

async function load(file) {
  model?.compiled.delete();
  model = null;
  if (!file) return;
  const bytes = new Uint8Array(await file.arrayBuffer());
  fixBatch(bytes);
  const compiled = await loadAndCompile(bytes, { accelerator: "wasm" });
  const files = readArchive(bytes);
  model = {
    compiled,
    labels: files["labels.txt"]?.trimEnd().split("\n") ?? [],
    rule: files["preprocessing.json"] ? JSON.parse(files["preprocessing.json"]) : null,
  };
}

async function update(change) {
  tell("working", "Working …");
  byId("answers").replaceChildren();
  try {
    await litert;
    await change();
    const [picture] = byId("picture").files;
    if (model && picture) {
      const { scores, milliseconds } = await classify(model, picture);
      show(scores, model.labels);
      tell("done", `${milliseconds.toFixed(0)} ms`);
    } else {
      tell("waiting", model ? "Choose a picture." : "Choose a model.");
    }
  } catch (error) {
    tell("failed", `This does not work: ${error.message ?? error}`);
  }
}

function whenChosen(id, change) {
  byId(id).addEventListener("change", (event) => {
    queue = queue.then(() => update(() => change(event.target.files[0])));
  });
}

whenChosen("model", load);
whenChosen("picture", () => {});
