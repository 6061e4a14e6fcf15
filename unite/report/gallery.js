"use strict";
// Galleries: cards that are sorted and filtered, and a panel that shows the one that was chosen. Texts come from files of
// anybody's and are only ever set as text.

const CARDS_AT_ONCE = 60;
const viewer = typeof Viewer === "undefined" ? null : new Viewer();

function make(tag, options = {}, ...children) {
  const { class: name, text, ...attributes } = options;
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value);
  }
  element.append(...children.filter(Boolean));
  return element;
}

// As <img>, an SVG runs no scripts and fetches nothing.
function picture(source, pixels) {
  if (!source) return make("span", { class: "blank", text: "no picture" });
  const uri = source.startsWith("<svg") ? "data:image/svg+xml," + encodeURIComponent(source) : source;
  return make("img", { src: uri, alt: "", class: pixels ? "pixels" : "", decoding: "async" });
}

function shown(value) {
  return Number.isInteger(value) ? value.toLocaleString("en") : String(Number(value.toPrecision(4)));
}

function counts(items, key) {
  const found = new Map();
  for (const item of items) if (item[key]) found.set(item[key], (found.get(item[key]) || 0) + 1);
  return [...found].sort((one, other) => other[1] - one[1]);
}

class Galleries {
  constructor(place, galleries) {
    this.galleries = galleries;
    this.all = galleries.flatMap((gallery) => gallery.items);
    this.filter = { verdict: "", group: "", text: "" };
    this.hasGroups = this.all.some((item) => item.group);
    this.order = this.hasGroups ? "group" : "";
    this.isDescending = false;
    this.columns = galleries.map((gallery) => new Column(gallery, this));
    this.panel = make("aside", { class: "panel", "aria-live": "polite" });
    const columns = make("div", { class: "columns" }, ...this.columns.map((column) => column.place));
    columns.style.setProperty("--columns", galleries.length);
    place.append(this.toolbar(), make("div", { class: "body" }, columns, this.panel));
    place.addEventListener("keydown", (event) => this.onKey(event));
    this.update();
    this.select(this.columns.find((column) => column.visible.length)?.visible[0], !viewer?.item);
  }

  toolbar() {
    const bar = make("div", { class: "toolbar" });
    const verdicts = counts(this.all, "verdict");
    if (verdicts.length) bar.append(this.chips(verdicts));
    const groups = counts(this.all, "group");
    if (groups.length > 1) {
      const names = groups.map(([name]) => name).sort((one, other) => one.localeCompare(other, "en", { numeric: true }));
      bar.append(this.choice("class", names, (name) => (this.filter.group = name), "all classes"));
    }
    const numbers = [...new Set(this.all.flatMap((item) => Object.keys(item.numbers)))];
    const orders = [...(this.hasGroups ? ["class"] : []), ...numbers];
    if (orders.length) {
      const direction = make("button", { class: "quiet", type: "button", text: "↑", title: "rising or falling" });
      direction.addEventListener("click", () => {
        this.isDescending = !this.isDescending;
        direction.textContent = this.isDescending ? "↓" : "↑";
        this.update();
      });
      const take = (name) => (this.order = name === "class" ? "group" : name);
      const sort = this.choice("sort by", orders, take, "as in the file", this.hasGroups ? "class" : "");
      bar.append(make("span", { class: "sort" }, sort, direction));
    }
    if (this.all.some((item) => item.name)) {
      const search = make("input", { type: "search", placeholder: "name or SMILES", "aria-label": "search" });
      search.addEventListener("input", () => {
        this.filter.text = search.value.trim().toLowerCase();
        this.update();
      });
      bar.append(search);
    }
    return bar;
  }

  chips(verdicts) {
    const good = new Set(this.all.filter((item) => item.is_good).map((item) => item.verdict));
    verdicts.sort((one, other) => good.has(other[0]) - good.has(one[0]) || other[1] - one[1]);
    const chips = [["", this.all.length], ...verdicts].map(([verdict, count]) => {
      const tone = verdict && !good.has(verdict) ? " bad" : "";
      const chip = make("button", { type: "button", class: "chip" + tone, "aria-pressed": String(!verdict) },
        verdict || "all", make("span", { class: "count", text: count.toLocaleString("en") }));
      chip.dataset.verdict = verdict;
      chip.addEventListener("click", () => {
        this.filter.verdict = verdict;
        for (const other of chips) other.setAttribute("aria-pressed", String(other === chip));
        this.update();
      });
      return chip;
    });
    return make("div", { class: "chips" }, ...chips);
  }

  choice(label, names, take, none, start = "") {
    const options = [["", none], ...names.map((name) => [name, name])];
    const select = make("select", {}, ...options.map(([value, text]) => make("option", { value, text })));
    select.value = start;
    select.addEventListener("change", () => {
      take(select.value);
      this.update();
    });
    return make("label", {}, label + " ", select);
  }

  accepts(item) {
    const { verdict, group, text } = this.filter;
    if (verdict && item.verdict !== verdict) return false;
    if (group && item.group !== group) return false;
    return !text || [item.name, ...item.remarks].some((words) => words.toLowerCase().includes(text));
  }

  compare(one, other) {
    const sign = this.isDescending ? -1 : 1;
    if (this.order === "group") return sign * one.group.localeCompare(other.group, "en", { numeric: true });
    const [first, second] = [one.numbers[this.order], other.numbers[this.order]];
    if (first === undefined || second === undefined) return (first === undefined) - (second === undefined);
    return sign * (first - second);
  }

  update() {
    for (const column of this.columns) column.update();
  }

  onKey(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || !this.selected || ["INPUT", "SELECT"].includes(event.target.tagName)) return;
    event.preventDefault();
    this.step(step);
  }

  step(step) {
    const column = this.columns.find((one) => one.gallery.items.includes(this.selected));
    const next = column.visible[column.visible.indexOf(this.selected) + step];
    if (next) this.select(next);
  }

  // Shows an item in the panel; in space, if the canvas may come here.
  select(item, mayTurn = true) {
    if (!item) return;
    this.selected = item;
    for (const column of this.columns) column.mark(item);
    const gallery = this.galleries.find((one) => one.items.includes(item));
    const stage = make("div", { class: "stage" });
    const buttons = make("div", { class: "buttons" });
    this.panel.replaceChildren(stage, buttons, ...this.description(item, gallery));
    if (item.scene && viewer && !mayTurn) this.wait(stage, item, gallery);
    else if (item.scene && viewer && viewer.show(stage, item)) {
      this.controls(buttons, item);
      viewer.leave = () => this.wait(stage, item, gallery);
    } else if (item.original_picture) stage.append(...this.pair(item, gallery));
    else stage.append(picture(item.picture, gallery.pixels));
    buttons.append(
      make("button", { type: "button", class: "quiet", text: "‹", title: "previous", onclick: () => this.step(-1) }),
      make("button", { type: "button", class: "quiet", text: "›", title: "next", onclick: () => this.step(1) }),
    );
  }

  // The flat picture stands where the canvas is not, and calls it when it is clicked.
  wait(stage, item, gallery) {
    stage.replaceChildren(picture(item.picture, gallery.pixels), make("span", { class: "hint", text: "click to turn" }));
    stage.addEventListener("click", () => this.select(item), { once: true });
  }

  pair(item, gallery) {
    const both = [["original", item.original_picture], ["reconstruction", item.picture]];
    return both.map(([words, source]) =>
      make("figure", {}, picture(source, gallery.pixels), make("figcaption", { text: words })));
  }

  controls(buttons, item) {
    const toggle = (text, property, redraw) => {
      const button = make("button", { type: "button", class: "quiet", text, "aria-pressed": String(viewer[property]) });
      button.addEventListener("click", () => {
        viewer[property] = !viewer[property];
        button.setAttribute("aria-pressed", String(viewer[property]));
        viewer.draw();
      });
      return button;
    };
    const style = make("button", { type: "button", class: "quiet", text: "space filling",
      "aria-pressed": String(viewer.style === "spheres") });
    style.addEventListener("click", () => {
      viewer.style = viewer.style === "spheres" ? "sticks" : "spheres";
      style.setAttribute("aria-pressed", String(viewer.style === "spheres"));
      viewer.draw();
    });
    if (item.original) buttons.append(toggle("original", "showsOriginal"));
    buttons.append(style, toggle("spin", "spins"));
  }

  description(item, gallery) {
    const rows = Object.entries(item.numbers).flatMap(([name, value]) => [
      make("dt", { text: name }), make("dd", { text: shown(value) })]);
    const run = this.galleries.length > 1 ? gallery.name : "";
    return [
      item.verdict && make("p", { class: "verdict" + (item.is_good ? "" : " bad"), text: item.verdict }),
      make("p", { class: "name", text: item.name || item.group }),
      make("dl", {}, ...rows),
      make("ul", { class: "remarks" }, ...[run, ...item.remarks].filter(Boolean).map((text) => make("li", { text }))),
      item.original && make("p", { class: "legend" }, make("span", { class: "swatch made" }),
        "reconstruction, laid over the original"),
      item.scene?.num_given && make("p", { class: "legend", text: "Hydrogens are placed by ideal geometry." }),
      item.scene?.marked.length > 0 && make("p", { class: "legend" }, make("span", { class: "swatch mark" }),
        item.scene.mark),
    ].filter(Boolean);
  }
}

class Column {
  constructor(gallery, owner) {
    this.gallery = gallery;
    this.owner = owner;
    this.title = make("p", { class: "title" });
    const isSmall = !gallery.items.some((item) => item.name);
    const hasPairs = gallery.items.some((item) => item.original_picture);
    this.cards = make("div", { class: "cards" + (isSmall ? " small" : "") + (hasPairs ? " pairs" : "") });
    this.end = make("div", { class: "end" });
    this.scroller = make("div", { class: "scroller", tabindex: "0" }, this.cards, this.end);
    this.place = make("div", { class: "column" }, this.title, this.scroller);
    // Cards are made as they come into view: a thousand at once take seconds.
    new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && this.more(),
      { root: this.scroller, rootMargin: "400px" }).observe(this.end);
  }

  update() {
    const items = this.gallery.items.filter((item) => this.owner.accepts(item));
    if (this.owner.order) items.sort((one, other) => this.owner.compare(one, other));
    this.visible = items;
    const { total, noun, name } = this.gallery;
    const of = this.gallery.items.length < total ? ` of the first ${this.gallery.items.length.toLocaleString("en")}` : "";
    this.title.textContent = (this.owner.galleries.length > 1 ? `${name}: ` : "") +
      `${items.length.toLocaleString("en")}${of} of ${total.toLocaleString("en")} ${noun}`;
    this.cards.replaceChildren();
    this.num_made = 0;
    this.group = null;
    this.scroller.scrollTop = 0;
    this.more();
  }

  more() {
    const next = this.visible.slice(this.num_made, this.num_made + CARDS_AT_ONCE);
    if (!next.length) return;
    this.num_made += next.length;
    const parts = [];
    for (const item of next) {
      if (this.owner.order === "group" && item.group !== this.group) {
        this.group = item.group;
        parts.push(make("h4", { text: item.group || "no class" }));
      }
      parts.push(this.card(item));
    }
    this.cards.append(...parts);
    // The mark at the end may still be in view, and then tells nothing new.
    requestAnimationFrame(() => {
      const room = this.scroller.getBoundingClientRect().bottom + 400;
      if (this.scroller.clientHeight && this.end.getBoundingClientRect().top < room) this.more();
    });
  }

  card(item) {
    const pixels = this.gallery.pixels;
    const pictures = [item.original_picture, item.picture].filter(Boolean);
    const isSmall = this.cards.classList.contains("small");
    const card = make("button", { type: "button", class: "card" + (item.is_good ? "" : " bad"), title: item.name || item.group },
      ...(pictures.length ? pictures : [""]).map((source) => picture(source, pixels)),
      isSmall ? null : make("span", { class: "caption", text: item.is_good && item.name ? item.name : item.verdict }));
    card.item = item;
    card.classList.toggle("selected", item === this.owner.selected);
    card.addEventListener("click", () => this.owner.select(item));
    return card;
  }

  mark(item) {
    for (const card of this.cards.querySelectorAll(".card")) {
      const is = card.item === item;
      card.classList.toggle("selected", is);
      if (is) card.scrollIntoView({ block: "nearest", inline: "nearest" });
    }
  }
}

async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

async function begin() {
  const galleries = await unpacked(document.getElementById("galleries").textContent);
  for (const place of document.querySelectorAll(".gallery")) {
    new Galleries(place, place.dataset.galleries.split(" ").map((number) => galleries[Number(number)]));
  }
  document.body.dataset.ready = "yes";
}

begin();
