"use strict";

// How many photographs are on their way at once.
const AT_ONCE = 4;

const list = document.getElementById("answers");
const status = document.getElementById("status");
const drop = document.getElementById("drop");
const template = document.getElementById("answer");

// The token of a guarded service comes with the address: page/#token
const token = decodeURIComponent(location.hash.slice(1));
const headers = token ? { Authorization: `Bearer ${token}` } : {};

const percent = (probability) => `${(100 * probability).toFixed(1)} %`;

async function about() {
  const response = await fetch("/v1/model", { headers });
  const text = document.getElementById("about");
  if (!response.ok) {
    const { error } = await response.json().catch(() => ({}));
    text.textContent = error ?? `The answer was HTTP ${response.status}.`;
    return;
  }
  const { classes, held_out: heldOut } = await response.json();
  const accuracy = heldOut?.accuracy;
  const trust = accuracy ? ` It was right on ${percent(accuracy)} of the photographs it was tested on.` : "";
  text.textContent = `This model knows ${classes.length} classes: ${classes.join(", ")}.${trust}`;
}

// The picture needs the token, so an img alone cannot load it.
async function showNear(figure, { digest, class: name, cosine }) {
  const near = document.createElement("div");
  near.className = "near";
  const picture = Object.assign(document.createElement("img"), { alt: `${name}, cosine ${cosine.toFixed(2)}` });
  near.append(picture, Object.assign(document.createElement("bdi"), { textContent: name }));
  figure.append(near);
  const response = await fetch(`/v1/training/${digest}`, { headers });
  if (!response.ok) {
    picture.remove();
    return;
  }
  picture.src = URL.createObjectURL(await response.blob());
  picture.onload = picture.onerror = () => URL.revokeObjectURL(picture.src);
}

function show(item, { answer, predictions, nearest, error }) {
  const title = item.querySelector("h2");
  if (error) {
    item.classList.add("failed");
    title.textContent = "This could not be read";
    item.querySelector(".file").append(`: ${error}`);
    return;
  }
  const isUnknown = answer !== predictions[0].class;
  item.classList.toggle("unknown", isUnknown);
  title.textContent = isUnknown ? "Unknown: not like anything this model was trained on" : answer;
  for (const { class: name, probability } of predictions) {
    const row = document.createElement("li");
    const text = document.createElement("div");
    text.className = "row";
    text.append(Object.assign(document.createElement("bdi"), { textContent: name }), percent(probability));
    const bar = Object.assign(document.createElement("meter"), { min: 0, max: 1, value: probability });
    bar.setAttribute("aria-label", `${name}: ${percent(probability)}`);
    row.append(text, bar);
    item.querySelector("ul").append(row);
  }
  if (nearest) {
    const figure = item.querySelector("figure");
    figure.hidden = false;
    for (const image of nearest) showNear(figure, image);
  }
}

async function ask(file, item) {
  for (;;) {
    let response;
    try {
      response = await fetch("/v1/predict?top_k=5&nearest=3", { method: "POST", headers, body: file });
    } catch {
      return { error: "the service does not answer" };
    }
    if (response.status === 503) {
      // Others are being served: a moment later there is room.
      await new Promise((done) => setTimeout(done, 1000 * Number(response.headers.get("Retry-After") ?? 1)));
      continue;
    }
    // What stands between, such as a proxy, answers in its own words.
    const answer = await response.json().catch(() => null);
    return answer ?? { error: `the answer was HTTP ${response.status}` };
  }
}

let waiting = [];
let working = 0;
let answered = 0;

async function work() {
  working += 1;
  for (let next = waiting.shift(); next; next = waiting.shift()) {
    const [file, item] = next;
    show(item, await ask(file, item));
    item.removeAttribute("aria-busy");
    answered += 1;
    status.textContent = waiting.length + working > 1 ? `${answered} answered, ${waiting.length} to go` : "";
  }
  working -= 1;
  if (working === 0) status.textContent = answered === 1 ? "1 photograph answered" : `${answered} photographs answered`;
}

function add(files) {
  for (const file of files) {
    const item = template.content.firstElementChild.cloneNode(true);
    item.querySelector("h2").textContent = "…";
    item.querySelector(".file").textContent = file.name;
    item.setAttribute("aria-busy", "true");
    const picture = item.querySelector("img");
    picture.src = URL.createObjectURL(file);
    picture.alt = file.name;
    picture.onload = picture.onerror = () => URL.revokeObjectURL(picture.src);
    list.prepend(item);
    waiting.push([file, item]);
  }
  while (working < Math.min(AT_ONCE, waiting.length)) work();
}

for (const id of ["choose", "take"]) {
  const input = document.getElementById(id);
  input.addEventListener("change", () => {
    add(input.files);
    input.value = "";
  });
}

for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
}
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) drop.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  add(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => add(event.clipboardData.files));

about();
