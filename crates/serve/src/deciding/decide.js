"use strict";

const $ = (id) => document.getElementById(id);

// What the service said last, what is asked about on the screen, and how many of its pictures are not there yet: a key
// must not decide about a photograph that nobody has seen.
let session = null;
let current = null;
let unseen = 0;
let isBusy = false;

const percent = (probability) => `${Math.round(100 * probability)} %`;
const address = (image, isSmall) => `v1/images/${image}${isSmall ? "?small=true" : ""}`;

const distinct = (values) => [...new Set(values)];
const list = (names) => names.join(", ").replace(/, ([^,]*)$/, " and $1");

// What copies are spread over, and whether that is wrong.
function aboutCopies({ copies }) {
  const what = distinct(copies.map(({ image }) => image)).length === 1 ? "The same file" : "These look the same";
  const classes = distinct(copies.map((copy) => copy.class));
  if (classes.length > 1) return `${what}, but the classes are ${list(classes)}: at most one is right.`;
  const splits = distinct(copies.map(({ split }) => split));
  if (splits.length > 1) return `${what}, in ${list(splits)}: figures come out too good.`;
  return `${what}, ${copies.length} times.`;
}

const words = {
  copies: aboutCopies,
  unlike: () => "It looks like no photograph that has a class.",
  uncertain: ({ suggestions: [a, b] }) => `The model is torn between ${a.class} and ${b.class}.`,
  undone: () => "You took back what was decided.",
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
  const { images, labelled, checked, copies, n_right: right, n_drawn: drawn, accuracy, would_help: wouldHelp } = session.progress;
  const parts = session.task === "label"
    ? [`${labelled} of ${images} photographs have a class`]
    : [`${checked} of ${labelled} classes looked at`];
  if (copies > 0) parts.push(copies === 1 ? "one group of copies" : `${copies} groups of copies`);
  if (accuracy !== null) parts.push(`models agree with ${percent(accuracy)} of those that they have not seen`);
  if (drawn > 0) parts.push(`the model was right on ${right} of ${drawn} drawn at random`);
  if (wouldHelp !== null) parts.push(wouldHelp ? "more answers would help" : "more answers would hardly help");
  if (session.is_training) parts.push("a new model is on its way");
  $("progress").textContent = `${parts.join(" · ")}.`;
}

function choice(text, share, key, isRight, answer) {
  const button = element("button", { type: "button", className: isRight ? "right" : "" },
    element("bdi", { textContent: text }), element("span", { className: "share" }, share, " ", key && element("kbd", { textContent: key })));
  if (key) button.setAttribute("aria-keyshortcuts", key);
  button.addEventListener("click", () => decide(answer));
  return button;
}

function show() {
  tellProgress();
  const classes = session.classes;
  $("classes").replaceChildren(...classes.map((name) => element("option", { value: name })));
  // What is on the screen stays until it is answered, whatever a new model says: no key must meet another photograph.
  const isSame = current !== null;
  current ??= session.items[0] ?? null;
  $("item").hidden = current === null;
  showMany();
  if (current === null) {
    $("status").textContent = session.is_training ? "…" : (session.failure ?? "Nothing is left to look at.");
    if (session.is_training) setTimeout(refresh, 30);
    return;
  }
  for (const item of session.items.slice(0, 8)) filesOf(item).forEach(({ image }, _, { length }) => { new Image().src = address(image, length > 2); });
  if (isSame) return;
  $("status").textContent = session.failure ?? "";
  // Buttons that are replaced lose the focus, and the next key must not press one that stays.
  if ($("item").contains(document.activeElement)) $("item").focus();
  const files = filesOf(current);
  unseen = files.length;
  $("pictures").classList.toggle("several", files.length > 1);
  $("pictures").replaceChildren(...files.map((item) => picture(item, files.length > 2)));
  $("why").textContent = words[current.why.is](current);
  const areCopies = current.copies.length > 0;
  $("ask").textContent = areCopies ? "Which of these are to stay?" : "What is in the photograph?";
  $("exclude").firstChild.data = areCopies ? "Leave all out " : "Leave out ";
  $("other").querySelector("label").textContent = areCopies ? "All stay, and are" : "Another class";
  if (areCopies) showCopies();
  else showClasses();
}

const filesOf = (item) => (item.copies.length > 0 ? item.copies : [item]);

function picture({ image, file }, isSmall) {
  const made = element("img", { alt: `photograph ${file}` });
  made.addEventListener("load", () => { if (made.isConnected) unseen -= 1; });
  const figure = element("figure", {}, made, element("figcaption", {}, element("bdi", { textContent: file })));
  made.addEventListener("error", () => {
    if (!made.isConnected) return;
    const isOne = current.copies.length === 0;
    $("status").textContent = `${file} cannot be read any more${isOne ? ": leave it out or skip it" : ""}.`;
    if (isOne) return;
    // The others can be compared.
    unseen -= 1;
    for (const button of figure.querySelectorAll("button")) button.disabled = true;
  });
  made.src = address(image, isSmall);
  return figure;
}

function showCopies() {
  const { copies } = current;
  const figures = [...$("pictures").children];
  copies.forEach(({ image, place, class: name, split }, at) => {
    const keep = choice(`Keep only this: ${name}, ${split}`, "", at < 9 ? String(at + 1) : "", false, { keep: { image, place } });
    figures[at].append(keep);
  });
  $("given").textContent = "";
  $("nearest").replaceChildren();
  // Files of the same bytes have one class.
  const isClear = distinct(copies.map(({ image, class: name }) => JSON.stringify([image, name]))).length
    === distinct(copies.map(({ image }) => image)).length;
  const classes = distinct(copies.map((copy) => copy.class));
  $("choices").replaceChildren(...isClear
    ? [choice(classes.length > 1 ? "Keep all, each class is right" : `Keep all: ${classes[0]} is right`, "", "Enter", true, "right")]
    : []);
}

function showClasses() {
  const { classes } = session;
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
    const images = await send(`v1/images/${item.image}/nearest?class=${encodeURIComponent(name)}`).catch(() => []);
    if (item !== current) return;
    if (images.length === 0) continue;
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
    take(await send("v1/session"));
  } catch (error) {
    $("status").textContent = error.message;
  }
}

// One after the other. Whether it was done.
async function act(path, body) {
  if (isBusy) return false;
  isBusy = true;
  try {
    const answer = await send(path, body);
    current = null;
    take(answer);
    if (session.is_training) setTimeout(refresh, 300);
    return true;
  } catch (error) {
    if (error.status === 409) {
      current = null;
      await refresh();
    }
    $("status").textContent = error.message;
    return false;
  } finally {
    isBusy = false;
  }
}

async function decide(answer) {
  if (current === null) return;
  const areCopies = current.copies.length > 0;
  // A photograph that cannot be read can be left out all the same, but not several at once.
  if (unseen > 0 && (areCopies || answer !== "exclude")) return;
  const versions = new Map(filesOf(current).map(({ image, version }) => [image, version]));
  const images = [...versions].map(([image, version]) => ({ image, version }));
  if (await act("v1/decide", { images, are_copies: areCopies, answer })) $("class").value = "";
}

function skip() {
  if (current !== null) act("v1/skip", { image: current.image, is_copies: current.copies.length > 0 });
}

function undo() {
  act("v1/undo", { decided: session.progress.decided });
}

// The class that the grid is of, and its images once they are known.
let many = { name: null, images: null };

function showMany() {
  $("many").hidden = session.task !== "label" || session.classes.length < 2;
  const before = $("of").value;
  if (session.classes.length === $("of").options.length) return;
  $("of").replaceChildren(...session.classes.map((name) => element("option", { value: name, textContent: name })));
  if (session.classes.includes(before)) $("of").value = before;
}

async function loadMany(unmarked = new Set()) {
  const name = $("of").value;
  many = { name, images: null };
  $("grid").replaceChildren();
  tellMany();
  let images;
  try {
    images = await send(`v1/confident?class=${encodeURIComponent(name)}`);
  } catch (error) {
    $("status").textContent = error.message;
    return;
  }
  if (name !== $("of").value) return;
  many = { name, images };
  $("grid").replaceChildren(...images.map(({ image }, place) => {
    const box = element("input", { type: "checkbox", disabled: true, ariaLabel: `${name}, ${place + 1}` });
    const picture = element("img", { src: address(image, true), alt: "" });
    // What nobody can see is not confirmed.
    picture.addEventListener("load", () => {
      Object.assign(box, { disabled: false, checked: !unmarked.has(image) });
      tellMany();
    });
    return element("label", {}, box, picture);
  }));
  tellMany();
}

function tellMany() {
  const n = $("grid").querySelectorAll("input:checked").length;
  $("confirm").disabled = n === 0;
  if (many.images === null) $("confirm").textContent = "…";
  else $("confirm").textContent = many.images.length === 0 ? `It is sure of no ${many.name} yet` : `These ${n} are ${many.name}`;
}

$("many").addEventListener("toggle", () => $("many").open && loadMany());
$("of").addEventListener("change", () => loadMany());
$("grid").addEventListener("change", tellMany);
$("confirm").addEventListener("click", async () => {
  const boxes = [...$("grid").querySelectorAll("input")];
  const images = many.images.filter((_, place) => boxes[place].checked);
  // What was said not to be of the class is not marked again.
  const unmarked = new Set(many.images.filter((_, place) => !boxes[place].checked).map(({ image }) => image));
  await act("v1/decide", { images, are_copies: false, answer: { class: many.name } });
  const said = $("status").textContent;
  await loadMany(unmarked);
  $("status").textContent = said;
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
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const { target } = event;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.repeat) {
    if (target.matches("button")) event.preventDefault();
    return;
  }
  if (key === "Escape") target.blur?.();
  if (target.matches("input, select, summary, #many *")) return;
  // Enter and the space bar belong to what has the focus.
  if (target.matches("button") && (key === "Enter" || key === " ")) return;
  const shown = [...document.querySelectorAll("button[aria-keyshortcuts]:enabled")].filter((button) => button.offsetParent !== null);
  const pressed = shown.find((button) => button.getAttribute("aria-keyshortcuts") === key);
  if (pressed) {
    event.preventDefault();
    pressed.click();
  } else if (key === "c" || key === "/") {
    event.preventDefault();
    $("class").focus();
  }
});

refresh();
