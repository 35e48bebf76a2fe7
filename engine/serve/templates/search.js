"use strict";

const byId = (id) => document.getElementById(id);
const file = byId("file"), camera = byId("camera"), text = byId("text");
const classes = byId("class"), count = byId("count"), large = byId("large");
const state = { query: null, largest: Infinity, neighbours: [], shown: 0, number: 0 };

function say(words, isError = false) {
  byId("status").textContent = words;
  byId("status").classList.toggle("error", isError);
}

async function ask(address, options = {}) {
  let response;
  try {
    response = await fetch(address, options);
  } catch {
    throw new Error("The server cannot be reached.");
  }
  const found = await response.json().catch(() => ({}));
  if (!response.ok) {
    const detail = typeof found.detail === "string" ? found.detail : `status ${response.status}`;
    throw new Error(`No answer: ${detail}`);
  }
  return found;
}

async function start() {
  const about = await ask("/api/about");
  const number = (value, one, many) => `${value.toLocaleString("en")} ${value === 1 ? one : many}`;
  const parts = [number(about.images, "image", "images")];
  if (about.classes.length) parts.push(number(about.classes.length, "class", "classes"));
  byId("about").textContent = `${parts.join(" of ")}. Search them by an image${about.words ? " or by words" : ""}.`;
  for (const name of about.classes) classes.add(new Option(name, name));
  classes.hidden = byId("class-label").hidden = about.classes.length < 2;
  byId("words").hidden = !about.words;
  byId("sources").classList.toggle("one", !about.words);
  state.largest = about.largest_upload;
}

/* What is searched: an image file or words */
function searchImage(image) {
  if (!image) return;
  if (image.size > state.largest) {
    say(`This file has ${(image.size / 1e6).toFixed(1)} MB, more than ${state.largest / 1e6} MB.`, true);
    return;
  }
  const preview = byId("preview");
  if (preview.src) URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(image);
  preview.hidden = false;
  search({ image });
}

async function search(query) {
  state.query = query;
  const number = ++state.number;  // an answer that another query has overtaken is dropped
  const asked = new URLSearchParams({ k: count.value });
  if (classes.value) asked.set("class_name", classes.value);
  if (query.text) asked.set("text", query.text);
  say("Searching …");
  try {
    const options = query.image
      ? { method: "POST", body: query.image, headers: { "Content-Type": "application/octet-stream" } }
      : {};
    const found = await ask(`/api/search?${asked}`, options);
    if (number === state.number) show(query, found);
  } catch (error) {
    if (number !== state.number) return;
    byId("answer").hidden = true;
    say(error.message, true);
  }
}

/* What was found */
function show(query, found) {
  state.neighbours = found.neighbours;
  byId("said").textContent = query.text || "Your image";
  byId("preview").hidden = !query.image;
  const verdict = byId("verdict"), best = found.neighbours[0];
  verdict.classList.toggle("none", found.none === true);
  if (found.none === true) verdict.textContent = "None of the classes: nothing in the index is near enough.";
  else verdict.textContent = best.class_name === null ? "" : `Nearest: ${best.class_name}`;
  byId("neighbours").replaceChildren(...found.neighbours.map(describe));
  byId("answer").hidden = false;
  const verdictWords = found.none === true ? "None of the classes. " : "";
  const one = found.neighbours.length === 1;
  say(`${verdictWords}${found.neighbours.length} ${one ? "neighbour" : "neighbours"}, nearest first.`);
}

function describe(neighbour, place) {
  const item = document.createElement("li"), figure = document.createElement("figure");
  const button = document.createElement("button"), picture = document.createElement("img");
  const caption = document.createElement("figcaption");
  button.type = "button";
  button.className = "picture";
  picture.src = neighbour.thumbnail;
  picture.alt = "";
  picture.loading = "lazy";
  picture.addEventListener("error", () => button.replaceChildren("not here"));
  button.setAttribute("aria-label", `Enlarge neighbour ${neighbour.rank}: ${wordsOf(neighbour)}`);
  button.append(picture);
  button.addEventListener("click", () => enlarge(place));
  for (const [name, words] of [["class", neighbour.class_name], ["cosine", neighbour.cosine.toFixed(4)], ["path", neighbour.name]]) {
    if (words === null || words === undefined) continue;
    const line = document.createElement("span");
    line.className = name;
    for (const part of words.split(/(?<=[_./-])/)) line.append(part, document.createElement("wbr"));
    caption.append(line);
  }
  figure.append(button, caption);
  item.append(figure);
  return item;
}

function wordsOf(neighbour) {
  const words = [neighbour.class_name, neighbour.name].filter(Boolean);
  return [...words, `cosine ${neighbour.cosine.toFixed(4)}`].join(", ");
}

function enlarge(place) {
  state.shown = (place + state.neighbours.length) % state.neighbours.length;
  const neighbour = state.neighbours[state.shown];
  byId("large-picture").src = `${neighbour.thumbnail}?size=large`;
  byId("large-picture").alt = neighbour.class_name || "Neighbour";
  byId("large-words").textContent = `${neighbour.rank} of ${state.neighbours.length}: ${wordsOf(neighbour)}`;
  if (!large.open) large.showModal();
}

/* What a person does */
byId("choose").addEventListener("click", () => file.click());
byId("photograph").addEventListener("click", () => camera.click());
for (const input of [file, camera]) {
  input.addEventListener("change", () => {
    searchImage(input.files[0]);
    input.value = "";
  });
}
byId("words").addEventListener("submit", (event) => {
  event.preventDefault();
  if (text.value.trim()) search({ text: text.value.trim() });
});
for (const choice of [classes, count]) {
  choice.addEventListener("change", () => state.query && search(state.query));
}

const drop = byId("drop");
for (const [name, isOver] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", isOver);
  });
}
document.addEventListener("drop", (event) => searchImage(event.dataTransfer.files[0]));
document.addEventListener("paste", (event) => {
  const image = [...event.clipboardData.files].find((each) => each.type.startsWith("image/"));
  if (image) {
    event.preventDefault();
    searchImage(image);
  }
});

byId("close").addEventListener("click", () => large.close());
byId("previous").addEventListener("click", () => enlarge(state.shown - 1));
byId("next").addEventListener("click", () => enlarge(state.shown + 1));
large.addEventListener("click", (event) => event.target === large && large.close());
large.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") enlarge(state.shown - 1);
  if (event.key === "ArrowRight") enlarge(state.shown + 1);
});

start().catch((error) => say(error.message, true));
