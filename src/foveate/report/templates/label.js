"use strict";
/* The bench: draws the state that the server sends, and sends back what a person decides. */
(() => {
  const $ = (id) => document.getElementById(id);
  const root = document.documentElement;
  let state = page.data;
  let busy = false, closed = false;

  /* Text goes in as text; nothing here makes markup of a string. */
  function make(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "class") node.className = value;
      else if (value !== null && value !== undefined) node.setAttribute(name, value);
    }
    node.append(...children.filter((child) => child !== null));
    return node;
  }
  function draw(tag, attributes) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  }
  function words(x, y, text, anchor) {
    const node = draw("text", { x, y, "text-anchor": anchor });
    node.textContent = text;
    return node;
  }
  const percent = (share) => `${Math.round(100 * share)}\u202f%`;

  /* ---------------------------------------------------------------- talking to the server */
  async function send(action, body, note) {
    if (busy || closed) return;
    busy = true;
    $("stage").setAttribute("aria-busy", "true");
    try {
      const answer = await fetch(`api/${action}`, {
        method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body),
      });
      const { state: next, message } = await answer.json();
      trouble(answer.ok ? "" : message);
      if (answer.ok) said(...note);
      if (next) { state = next; render(); }
      return answer.ok;
    } catch {
      trouble("The command that serves this page has stopped. Answers that this page called saved are kept; run the command again to go on.");
    } finally {
      busy = false;
      $("stage").removeAttribute("aria-busy");
    }
    return false;
  }
  function trouble(text) {
    $("trouble").textContent = text;
    $("trouble").hidden = !text;
  }
  function said(before, strong = "", after = "") {
    $("saved").replaceChildren(before, make("b", {}, strong), after);
  }
  const short = (text) => (text.length > 34 ? `…${text.slice(-33)}` : text);
  function label(name) {
    if (state.item) send("label", { id: state.item.id, label: name }, ["Saved: ", name, ` · ${short(state.item.id)}`]);
  }
  function skip() {
    if (state.item) send("skip", { id: state.item.id }, ["Skipped ", "", short(state.item.id)]);
  }
  function undo() {
    send("undo", {}, ["Taken back"]);
  }

  /* ---------------------------------------------------------------- the item */
  function classButtons(box, choose) {
    box.replaceChildren(...state.classes.map(({ name, count }, k) => {
      const key = k < state.keys ? String(k + 1) : null;
      const button = make("button", { type: "button", "aria-keyshortcuts": key },
        key && make("kbd", { "aria-hidden": "true" }, key),
        make("span", {}, name),
        make("span", { class: count ? "count" : "count none", title: `${count} labelled` }, String(count)));
      button.addEventListener("click", () => choose(name));
      return button;
    }));
  }
  function showItem() {
    const item = state.item;
    $("asking").hidden = !item;
    $("done").hidden = !!item;
    $("skip").disabled = !item;
    $("undo").disabled = !state.undo;
    if (!item) {
      const more = Math.min(10, state.most - state.answered);
      $("done-title").textContent = state.done;
      $("done-text").textContent = more > 0 ? "Go on as long as the accuracy still rises, or take the labels and finish." : "Every item has a label or was skipped.";
      $("more").textContent = `Label ${more} more`;
      $("more").hidden = more <= 0;
      return;
    }
    const picture = $("picture");
    if (item.picture && picture.getAttribute("src") !== item.picture) {
      picture.classList.remove("tiny");
      picture.src = item.picture;
    }
    picture.alt = item.picture ? `Item ${item.id}` : "";
    picture.hidden = !item.picture;
    $("values").hidden = !item.values.length;
    $("values").parentElement.classList.toggle("table", !item.picture);
    $("values").replaceChildren(...item.values.map(([name, value]) => {
      const long = value.length > 22;
      return make("div", { class: long ? "wide" : "" }, make("dt", {}, name), make("dd", { class: long ? "long" : "" }, value || "–"));
    }));
    $("name").textContent = item.id;
    classButtons($("classes"), label);
  }
  $("picture").addEventListener("load", () => $("picture").classList.toggle("tiny", $("picture").naturalWidth <= 128));
  $("picture").addEventListener("error", () => { $("picture").alt = "This picture cannot be shown; skip it."; });

  function showReason() {
    const why = state.item?.reason;
    document.querySelector(".why").hidden = !why;
    if (!why) return;
    $("why-title").textContent = why.title;
    $("why-text").textContent = why.text;
    $("odds").textContent = why.odds;
    const tone = ({ code }, k) => (code === "floor" ? "floor" : `c${k}`);
    $("stack").replaceChildren(...why.shares.map((share, k) => {
      const part = make("i", { class: tone(share, k) });
      part.style.flexGrow = share.share;
      return part;
    }));
    $("shares").replaceChildren(...why.shares.map((share, k) => make("li", { class: tone(share, k) },
      make("span", { class: "swatch" }), make("b", {}, share.name), make("span", { class: "note", title: share.note }, share.note), make("span", {}, percent(share.share)))));
  }

  /* ---------------------------------------------------------------- what is known */
  function sheet(box, height) {
    const width = Math.max(200, box.clientWidth || 320);
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    box.replaceChildren(svg);
    return { svg, width };
  }
  function showAccuracy() {
    $("accuracy").textContent = state.accuracy.value;
    $("accuracy-text").textContent = state.accuracy.text;
    $("caution").hidden = !state.accuracy.caution;
    $("caution-text").textContent = state.accuracy.caution;
    const points = state.curve;
    if (!points.length) { $("curve").replaceChildren(); return; }
    const height = 148, { svg, width } = sheet($("curve"), height);
    const left = 32, right = width - 8, top = 8, bottom = height - 20;
    const first = Math.min(points[0][0], 4);
    const end = Math.max(points.at(-1)[0], first + 8, Math.min(state.budget, points.at(-1)[0] * 2));
    const x = (n) => left + ((n - first) / (end - first)) * (right - left);
    const y = (share) => bottom - share * (bottom - top);
    for (const share of [0, 0.5, 1]) {
      svg.append(draw("line", { class: share ? "grid-line" : "axis", x1: left, x2: right, y1: y(share), y2: y(share) }));
      svg.append(words(left - 6, y(share) + 4, percent(share), "end"));
    }
    svg.append(words(left, height - 4, String(first), "start"), words(right, height - 4, `${end} labels`, "end"));
    const path = (k) => points.map((p) => `${x(p[0]).toFixed(1)},${y(p[k]).toFixed(1)}`);
    svg.append(draw("polygon", { class: "band", points: [...path(3), ...path(2).reverse()].join(" ") }));
    if (state.commonest) {
      svg.append(draw("line", { class: "base", x1: left, x2: right, y1: y(state.commonest), y2: y(state.commonest) }));
      svg.append(words(right, y(state.commonest) + (state.commonest > 0.2 ? 13 : -5), "always the commonest class", "end"));
    }
    svg.append(draw("polyline", { class: "line", points: path(1).join(" ") }));
    const last = points.at(-1);
    svg.append(draw("circle", { class: "dot", cx: x(last[0]), cy: y(last[1]), r: 4.5 }));
  }
  function showTrust() {
    const { experts, rounds, restarts } = state.trust;
    $("trust-card").hidden = rounds.length < 2;
    if (rounds.length < 2) return;
    const height = 96, { svg, width } = sheet($("trust"), height);
    const bottom = height - 18, step = (width - 2) / rounds.length;
    let below = rounds.map(() => 0);
    experts.forEach((expert, k) => {
      const above = rounds.map((weights, t) => below[t] + weights[k]);
      const edge = (levels) => levels.flatMap((level, t) => [[1 + t * step, level], [1 + (t + 1) * step, level]]);
      const at = ([px, level]) => `${px.toFixed(1)},${(bottom - level * (bottom - 2)).toFixed(1)}`;
      svg.append(draw("polygon", { class: `area c${k}`, points: [...edge(above), ...edge(below).reverse()].map(at).join(" ") }));
      below = above;
    });
    for (const t of restarts) svg.append(draw("line", { class: "restart", x1: 1 + t * step, x2: 1 + t * step, y1: 0, y2: bottom }));
    svg.append(words(1, height - 4, "first draw", "start"), words(width - 1, height - 4, `draw ${rounds.length}`, "end"));
    $("trust-key").replaceChildren(...experts.map(({ name }, k) => make("li", { class: `c${k}` }, make("span", { class: "swatch" }), `${name} ${percent(rounds.at(-1)[k])}`)));
  }

  /* ---------------------------------------------------------------- answers given */
  function showRecent() {
    $("recent-part").hidden = !state.recent.length;
    $("recent").replaceChildren(...state.recent.map((entry) => {
      const button = make("button", { type: "button", "aria-label": `${entry.id} is ${entry.label}; correct it` },
        entry.picture && make("img", { src: entry.picture, alt: "", loading: "lazy" }),
        make("span", { class: "what" }, entry.label), make("span", { class: "which", title: entry.id }, entry.id));
      button.addEventListener("click", () => correct(entry));
      return make("li", {}, button);
    }));
  }
  function correct(entry) {
    $("correct-picture").hidden = !entry.picture;
    if (entry.picture) $("correct-picture").src = entry.picture.split("?")[0];
    $("correct-name").textContent = entry.id;
    $("correct-was").textContent = `was called ${entry.label}`;
    classButtons($("correct-classes"), async (name) => {
      $("correct").close();
      if (name !== entry.label) await send("correct", { id: entry.id, label: name }, ["Corrected to ", name, ` · ${short(entry.id)}`]);
    });
    $("correct").showModal();
  }
  $("correct-close").addEventListener("click", () => $("correct").close());

  function render() {
    $("facts").replaceChildren(...state.facts.map((fact) => make("span", {}, fact)));
    $("answered").textContent = String(state.answered);
    $("budget").textContent = `of ${state.budget} answers`;
    $("bar").setAttribute("aria-valuemax", state.budget);
    $("bar").setAttribute("aria-valuenow", state.answered);
    $("bar").firstElementChild.style.width = percent(state.answered / state.budget).replace("\u202f", "");
    $("file").textContent = state.file;
    showItem();
    showReason();
    showAccuracy();
    showTrust();
    showRecent();
    root.dataset.turn = String(Number(root.dataset.turn ?? 0) + 1);
  }

  /* ---------------------------------------------------------------- hands */
  $("skip").addEventListener("click", skip);
  $("undo").addEventListener("click", undo);
  $("more").addEventListener("click", () => send("budget", { budget: Math.min(state.most, state.answered + 10) }, ["On we go"]));
  $("new-class").addEventListener("submit", async (event) => {
    event.preventDefault();
    const name = $("class-name").value.trim();
    if (name && (await send("class", { name }, ["New class: ", name]))) $("class-name").value = "";
    $("class-name").blur();
  });
  $("finish").addEventListener("click", async () => {
    if (!(await send("finish", {}, ["Finished"]))) return;
    closed = true;
    $("asking").hidden = true;
    $("done").hidden = false;
    $("done-title").textContent = `${state.answered} answers are saved.`;
    $("done-text").textContent = "The command has ended and wrote labels.csv beside the session; close this page. The same command goes on from here.";
    document.querySelectorAll(".choices, .actions, .tools, .recent, .why").forEach((part) => { part.hidden = true; });
  });
  addEventListener("keydown", (event) => {
    if (event.target instanceof HTMLInputElement || event.altKey || event.repeat) return;
    const dialog = $("correct").open;
    const z = (event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z";
    if ((event.ctrlKey || event.metaKey) && !z) return;
    const button = /^[1-9]$/.test(event.key)
      ? $(dialog ? "correct-classes" : "classes").children[Number(event.key) - 1]
      : dialog ? null
        : z || event.key.toLowerCase() === "u" || event.key === "Backspace" ? $("undo")
          : event.key.toLowerCase() === "s" ? $("skip") : null;
    if (!button || button.disabled || (!dialog && button.closest("[hidden]"))) return;
    event.preventDefault();
    button.classList.add("pressed");
    setTimeout(() => button.classList.remove("pressed"), 150);
    button.click();
  });

  render();
  let last = 0;
  new ResizeObserver(() => {
    if ($("curve").parentElement.clientWidth === last) return;
    last = $("curve").parentElement.clientWidth;
    showAccuracy();
    showTrust();
  }).observe($("curve").parentElement);
  root.dataset.ready = "yes";
})();
