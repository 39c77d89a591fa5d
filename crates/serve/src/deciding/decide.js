"use strict";

const $ = (id) => document.getElementById(id);

// What the service said last, the images that this window skips, and the image on the screen.
let session = null;
const skipped = new Set();
let current = null;
let isBusy = false;

const percent = (probability) => `${Math.round(100 * probability)} %`;
const address = (image, isSmall) => `/v1/images/${image}${isSmall ? "?small=true" : ""}`;

const words = {
  unlike: () => "It looks like no photograph that has a class.",
  uncertain: ({ suggestions: [a, b] }) => `The model is torn between ${a.class} and ${b.class}.`,
  check: () => "Drawn at random, to see how often the model is right.",
  suspect: ({ class: given, why, suggestions: [a] }) =>
    `Called ${given} (${percent(why.label_probability)}), but looks like ${a.class} (${percent(a.probability)}).`,
  unsure: ({ class: given, why }) => `Called ${given}, which is only ${percent(why.label_probability)} probable.`,
};

function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

async function send(path, body) {
  const options = body === undefined ? {} : {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("Luthier does not answer: it has ended, or this machine sleeps. What was decided is kept.");
  }
  const answer = await response.json();
  if (!response.ok) throw Object.assign(new Error(answer.error), { status: response.status });
  return answer;
}

function tellProgress() {
  const { images, labelled, checked, n_right: right, n_drawn: drawn, accuracy, would_help: wouldHelp } = session.progress;
  const parts = session.task === "label"
    ? [`${labelled} of ${images} photographs have a class`]
    : [`${checked} of ${labelled} classes looked at`];
  if (accuracy !== null) parts.push(`models agree with ${percent(accuracy)} of those that they have not seen`);
  if (drawn > 0) parts.push(`the model was right on ${right} of ${drawn} drawn at random`);
  if (wouldHelp !== null) parts.push(wouldHelp ? "more answers would help" : "more answers would hardly help");
  if (session.is_training) parts.push("a new model is on its way");
  $("progress").textContent = `${parts.join(" · ")}.`;
}

function choice(text, share, key, isRight, answer) {
  const button = element("button", { type: "button", className: isRight ? "right" : "" },
    element("bdi", { textContent: text }), element("span", { className: "share" }, share, " ", element("kbd", { textContent: key })));
  button.setAttribute("aria-keyshortcuts", key === "Enter" ? "Enter" : key);
  button.addEventListener("click", () => decide(answer));
  return button;
}

function show() {
  tellProgress();
  const classes = session.classes;
  $("classes").replaceChildren(...classes.map((name) => element("option", { value: name })));
  const open = session.items.filter((item) => !skipped.has(item.image));
  // What is on the screen stays until it is answered, whatever a new model says: no key must meet another photograph.
  const isSame = current !== null;
  current ??= open[0] ?? null;
  $("item").hidden = current === null;
  showMany();
  if (current === null) {
    $("status").textContent = session.is_training
      ? "…"
      : skipped.size > 0 ? "Nothing is left but what you skipped: reload the page to see it." : "Nothing is left to look at.";
    if (session.is_training) setTimeout(refresh, 30);
    return;
  }
  for (const item of open.slice(0, 8)) new Image().src = address(item.image, false);
  if (isSame) return;
  $("status").textContent = "";
  $("picture").src = address(current.image, false);
  $("picture").alt = `photograph ${current.file}`;
  $("file").textContent = current.file;
  $("why").textContent = current.why === null ? "You took back what you decided." : words[current.why.is](current);
  const given = current.class;
  $("given").textContent = given === null ? "It has no class yet." : "";
  const choices = [];
  const shares = new Map(current.suggestions.map(({ class: name, probability }) => [name, percent(probability)]));
  if (given !== null) choices.push(choice(`${given} is right`, shares.get(given) ?? "", "Enter", true, "right"));
  const named = current.suggestions.map((suggestion) => suggestion.class);
  const others = (named.length > 0 ? named : classes.slice(0, 9)).filter((name) => name !== given);
  others.forEach((name, place) =>
    choices.push(choice(name, shares.get(name) ?? "", String(place + 1), false, { class: name })));
  $("choices").replaceChildren(...choices);
  showNearest(current, [given, others[0]].filter((name) => name != null));
}

// Of its class, and of the most probable other.
async function showNearest(item, names) {
  $("nearest").replaceChildren();
  for (const name of item.suggestions.length > 0 ? names : []) {
    const images = await send(`/v1/images/${item.image}/nearest?class=${encodeURIComponent(name)}`).catch(() => []);
    if (item !== current || images.length === 0) return;
    $("nearest").append(element("div", { className: "class" }, "Most like it of ", element("bdi", { textContent: name }),
      element("div", {}, ...images.map((image) => element("img", { src: address(image, true), alt: name })))));
  }
}

function take(answer) {
  session = answer;
  show();
}

async function refresh() {
  try {
    take(await send("/v1/session"));
  } catch (error) {
    $("status").textContent = error.message;
  }
}

// One after the other: a key that is held down must not decide about what is not on the screen yet.
async function act(path, body) {
  if (isBusy) return;
  isBusy = true;
  try {
    const answer = await send(path, body);
    current = null;
    take(answer);
    if (session.is_training) setTimeout(refresh, 300);
  } catch (error) {
    if (error.status === 409) {
      current = null;
      await refresh();
    }
    $("status").textContent = error.message;
  } finally {
    isBusy = false;
  }
}

function decide(answer) {
  if (current === null) return;
  $("class").value = "";
  act("/v1/decide", { image: current.image, version: current.version, answer });
}

function skip() {
  if (current === null) return;
  skipped.add(current.image);
  current = null;
  show();
}

async function undo() {
  skipped.clear();
  await act("/v1/undo", {});
}

let shownMany = [];

function showMany() {
  $("many").hidden = session.task !== "label" || session.classes.length < 2;
  const before = $("of").value;
  $("of").replaceChildren(...session.classes.map((name) => element("option", { value: name, textContent: name })));
  if (session.classes.includes(before)) $("of").value = before;
}

async function loadMany() {
  const name = $("of").value;
  shownMany = await send(`/v1/confident?class=${encodeURIComponent(name)}`);
  $("grid").replaceChildren(...shownMany.map(({ image }, place) =>
    element("label", {}, element("input", { type: "checkbox", checked: true, ariaLabel: `${name}, ${place + 1}` }),
      element("img", { src: address(image, true), alt: "" }))));
  tellMany();
}

function tellMany() {
  const n = $("grid").querySelectorAll("input:checked").length;
  $("confirm").disabled = n === 0;
  $("confirm").textContent = shownMany.length === 0 ? `It is sure of no ${$("of").value} yet` : `These ${n} are ${$("of").value}`;
}

$("many").addEventListener("toggle", () => $("many").open && loadMany());
$("of").addEventListener("change", loadMany);
$("grid").addEventListener("change", tellMany);
$("confirm").addEventListener("click", async () => {
  const boxes = [...$("grid").querySelectorAll("input")];
  const images = shownMany.filter((_, place) => boxes[place].checked);
  await act("/v1/decide-many", { class: $("of").value, images });
  await loadMany();
});
$("other").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = $("class").value.trim();
  $("class").blur();
  if (name !== "") decide({ class: name });
});
$("exclude").addEventListener("click", () => decide("exclude"));
$("skip").addEventListener("click", skip);
$("undo").addEventListener("click", undo);

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
  const { target, key } = event;
  if (key === "Escape") target.blur?.();
  if (target.matches("input, select, summary, #many *")) return;
  // Enter and the space bar belong to what has the focus.
  if (target.matches("button") && (key === "Enter" || key === " ")) return;
  const buttons = [...$("choices").querySelectorAll("button")];
  const numbered = buttons.filter((button) => !button.classList.contains("right"));
  const right = buttons.find((button) => button.classList.contains("right"));
  const pressed = { Enter: right, x: $("exclude"), s: $("skip"), u: $("undo") }[key] ?? numbered[Number(key) - 1];
  if (pressed) {
    event.preventDefault();
    pressed.click();
  } else if (key === "c" || key === "/") {
    event.preventDefault();
    $("class").focus();
  }
});

refresh();
