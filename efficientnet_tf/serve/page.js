// The page of the development server: sends a picture to the model, and shows the most likely
// classes and where in the picture they are seen. It uses nothing but the API that TensorFlow
// Serving has too, and the list of models at /v1/models. Whatever the server says goes into the
// page as text, never as HTML.
"use strict";

// Pixels of the drawing's longer side: pictures outside these limits are drawn smaller or larger.
const LONGEST = 1024;
const SHORTEST = 480;
const FINER = 16; // pixels of the heat map for each value, so that it is smooth
// Red, green, blue for map values 0, 1/3, 2/3 and 1, dark to bright.
const HEAT = [[40, 10, 90], [170, 30, 110], [245, 125, 20], [250, 240, 120]];

const at = (id) => document.getElementById(id);
const state = { file: null, bytes: "", bitmap: null, map: null, box: null };
let work = new AbortController(); // of the picture or class that was asked for last

function say(text, bad = false) {
  at("status").textContent = text;
  at("status").className = bad ? "bad" : "soft";
}

// The parsed answer; an Error with words for people where there is none.
async function ask(path, body, signal) {
  const sent = body === undefined ? {} : {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  let response, text;
  try {
    response = await fetch(path, { ...sent, signal });
    text = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    const size = sent.body ? `, or refused ${(sent.body.length / 1e6).toFixed(1)} MB` : "";
    throw new Error(`The server did not answer: it is not running${size}.`);
  }
  let answer;
  try {
    answer = JSON.parse(text);
  } catch {
    throw new Error(`The server's answer (status ${response.status}) cannot be read.`);
  }
  if (!response.ok) {
    throw new Error(`The server says: ${answer.error ?? "no"} (status ${response.status})`);
  }
  return answer;
}

function path(verb) {
  return `/v1/models/${encodeURIComponent(at("model").value)}${verb}`;
}

async function listModels() {
  const { models } = await ask("/v1/models");
  for (const { name } of models) at("model").append(new Option(name, name));
  if (!models.length) throw new Error("The server has no models.");
  at("model").disabled = false;
}

// Base64 of a file's content.
function read(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Error(`${file.name} cannot be read.`));
    reader.readAsDataURL(file);
  });
}

// A picture file without its EXIF data: the network does not turn pictures by it, and browsers have
// no way to be kept from it.
function unturned(buffer) {
  const view = new DataView(buffer);
  const kept = [];
  let at = 0; // where what is not yet kept begins
  const skip = (start, end) => {
    kept.push(buffer.slice(at, start));
    at = end;
  };
  try {
    if (view.getUint16(0) === 0xffd8) { // JPEG: segments of a marker and a length, up to a scan
      for (let place = 2; view.getUint8(place) === 0xff && view.getUint8(place + 1) !== 0xda;) {
        const end = place + 2 + view.getUint16(place + 2);
        if (view.getUint8(place + 1) === 0xe1) skip(place, end);
        place = end;
      }
    } else if (view.getUint32(0) === 0x89504e47) { // PNG: chunks of a length, a name and a checksum
      for (let place = 8; place < view.byteLength;) {
        const end = place + 12 + view.getUint32(place);
        if (view.getUint32(place + 4) === 0x65584966) skip(place, end); // eXIf
        place = end;
      }
    }
  } catch {
    // Cut off: what is there is looked at as it is.
  }
  return new Blob([...kept, buffer.slice(at)]);
}

// Takes a new picture and asks what is in it.
async function open(file) {
  work.abort();
  const { signal } = (work = new AbortController());
  state.file = file;
  at("result").className = "waiting";
  say(`Looking at ${file.name} …`);
  try {
    await models;
    const bytes = await read(file);
    if (!bytes) throw new Error(`${file.name} is empty.`);
    const stored = unturned(await file.arrayBuffer());
    const bitmap = await createImageBitmap(stored).catch(() => null);
    signal.throwIfAborted();
    Object.assign(state, { bytes, bitmap, map: null, box: null });
    const { predictions } = await ask(path(":predict"), { instances: [{ b64: bytes }] }, signal);
    const { classes, class_ids: ids, scores } = predictions[0];
    if (!classes || !ids || !scores) {
      throw new Error("This model does not answer with classes, class_ids and scores.");
    }
    showClasses(classes, ids, scores);
    draw();
    at("caption").textContent = bitmap
      ? `${file.name}, ${bitmap.width} × ${bitmap.height}`
      : `${file.name}; this browser cannot show it`;
    at("result").hidden = false;
    at("result").className = "";
    at("drop").classList.add("small");
    at("picture").setAttribute("aria-label", `${file.name}: ${classes[0]}`);
    await explain(ids[0], signal);
  } catch (error) {
    fail(error);
  }
}

function fail(error) {
  if (error.name === "AbortError") return;
  at("result").hidden = true;
  say(error.message, true);
}

// One row for each class: its name, its score, a bar, and a button to see its map.
function showClasses(classes, ids, scores) {
  at("legend").textContent = `The ${ids.length} most likely classes`;
  const rows = ids.map((id, rank) => {
    const row = document.createElement("label");
    row.className = "class";
    const button = document.createElement("input");
    Object.assign(button, { type: "radio", name: "class", value: id, checked: rank === 0 });
    const part = (name, text) => {
      const span = document.createElement("span");
      span.className = name;
      span.textContent = text;
      return span;
    };
    const bar = part("bar", "");
    const filled = document.createElement("span");
    filled.style.width = `${100 * Math.min(Math.max(scores[rank], 0), 1)}%`;
    bar.append(filled);
    const score = part("score", `${(100 * scores[rank]).toFixed(2)} %`);
    row.append(button, part("name", classes[rank] || `class ${id}`), score, bar);
    return row;
  });
  at("classes").replaceChildren(...rows);
}

// Asks where in the picture the model sees a class, and draws it. Some models cannot tell.
async function explain(id, signal) {
  say("Asking where that is seen …");
  Object.assign(state, { map: null, box: null });
  const instance = { image_bytes: { b64: state.bytes }, class_id: id };
  const request = { signature_name: "explain", instances: [instance] };
  try {
    const { predictions } = await ask(path(":predict"), request, signal);
    Object.assign(state, { map: predictions[0].maps, box: predictions[0].boxes });
    say("");
  } catch (error) {
    if (error.name === "AbortError") return;
    say(`There is no activation map: ${error.message}`);
  }
  const drawn = Boolean(state.map && state.bitmap);
  at("map-switch").hidden = at("hint").hidden = !drawn;
  draw();
}

function draw() {
  const canvas = at("picture");
  canvas.hidden = !state.bitmap;
  if (!state.bitmap) return;
  const { width, height } = state.bitmap;
  const longer = Math.max(width, height);
  const scale = Math.min(Math.max(longer, SHORTEST), LONGEST) / longer;
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = canvas.getContext("2d");
  const mapped = Boolean(state.map && at("map").checked);
  // Without its own colours, so that those of the map can be told from them.
  context.filter = mapped ? "grayscale(1)" : "none";
  context.drawImage(state.bitmap, 0, 0, canvas.width, canvas.height);
  context.filter = "none";
  if (!mapped) return;
  const [top, left, tall, wide] = state.box;
  const box = [left * scale, top * scale, wide * scale, tall * scale];
  // What the network does not see is dimmed.
  context.fillStyle = "rgba(0, 0, 0, 0.55)";
  context.beginPath();
  context.rect(0, 0, canvas.width, canvas.height);
  context.rect(...box);
  context.fill("evenodd");
  context.drawImage(heat(state.map), ...box);
}

// A canvas with FINER x FINER pixels for each value of the map, more opaque where it is higher.
function heat(map) {
  const canvas = document.createElement("canvas");
  canvas.width = map[0].length * FINER;
  canvas.height = map.length * FINER;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  for (let y = 0; y < canvas.height; y++) {
    for (let x = 0; x < canvas.width; x++) {
      const value = between(map, (y + 0.5) / FINER - 0.5, (x + 0.5) / FINER - 0.5);
      const place = value * (HEAT.length - 1);
      const low = Math.min(Math.floor(place), HEAT.length - 2);
      const colour = HEAT[low].map((c, i) => c + (HEAT[low + 1][i] - c) * (place - low));
      pixels.data.set([...colour, 210 * value], 4 * (y * canvas.width + x));
    }
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

// The map's value between its places, bilinear, and beyond them that of the nearest.
function between(map, y, x) {
  const [y0, x0] = [Math.floor(y), Math.floor(x)];
  const [dy, dx] = [y - y0, x - x0];
  const value = (row, column) => {
    const line = map[Math.min(Math.max(row, 0), map.length - 1)];
    return Math.min(Math.max(line[Math.min(Math.max(column, 0), line.length - 1)], 0), 1);
  };
  return (1 - dy) * ((1 - dx) * value(y0, x0) + dx * value(y0, x0 + 1))
    + dy * ((1 - dx) * value(y0 + 1, x0) + dx * value(y0 + 1, x0 + 1));
}

function take(files) {
  if (files.length) open(files[0]);
  else say("That is not a file. Save the picture first, then drop it here.", true);
}

at("file").addEventListener("change", () => {
  if (at("file").files.length) open(at("file").files[0]);
  at("file").value = ""; // so that the same file can be chosen once more
});
at("model").addEventListener("change", () => state.file && open(state.file));
at("map").addEventListener("change", draw);
at("classes").addEventListener("change", (event) => {
  work.abort();
  work = new AbortController();
  explain(Number(event.target.value), work.signal);
});
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    at("drop").classList.add("over");
  });
}
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) at("drop").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  take(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) open(event.clipboardData.files[0]);
});

const models = listModels();
models.catch(fail);
