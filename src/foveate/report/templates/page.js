"use strict";
/* Shared by every report: theme, and figures that follow it. Exposes one name, `page`. */
const page = (() => {
  const root = document.documentElement;
  const data = JSON.parse(document.getElementById("page-data").textContent) || {};
  const paper = matchMedia("print");
  const dark = matchMedia("(prefers-color-scheme: dark)");

  // Storage is refused to pages from disk in some browsers: the choice then lasts until closing.
  const stored = {
    get() { try { return localStorage.getItem("foveate-theme"); } catch { return null; } },
    set(value) { try { localStorage.setItem("foveate-theme", value); } catch { /* kept in memory */ } },
  };

  /* Colour tokens: "@p0" is var(--p0), "@p0/0.2" the same with opacity. */
  const probe = document.body.appendChild(document.createElement("i"));
  probe.hidden = true;
  let resolved = new Map();
  function colour(token) {
    if (!token.startsWith("@")) return token;
    if (!resolved.has(token)) {
      const [name, opacity] = token.slice(1).split("/");
      probe.style.color = `var(--${name})`;
      const channels = getComputedStyle(probe).color.match(/[\d.]+/g).slice(0, 3).join(", ");
      resolved.set(token, opacity === undefined ? `rgb(${channels})` : `rgba(${channels}, ${opacity})`);
    }
    return resolved.get(token);
  }
  function painted(value, key) {
    if (typeof value === "string") return /color$/.test(key) ? colour(value) : value;
    if (Array.isArray(value) || value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, painted(v, k)]));
  }

  /* Round steps of time, whatever the zoom. */
  const STEPS = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400];
  function clock(seconds, digits = 0) {
    const scaled = Math.round(Math.max(0, seconds) * 10 ** digits) / 10 ** digits;
    const whole = Math.floor(scaled + 1e-9);
    const h = Math.floor(whole / 3600), m = Math.floor(whole / 60) % 60, s = whole % 60;
    const rest = digits ? (scaled - whole).toFixed(digits).slice(1) : "";
    const two = (n) => String(n).padStart(2, "0");
    return h ? `${h}:${two(m)}:${two(s)}${rest}` : `${m}:${two(s)}${rest}`;
  }
  function ticks([from, to], width) {
    const room = Math.max(2, width / 72);
    const step = STEPS.find((s) => (to - from) / s <= room) ?? 28800;
    const digits = step >= 1 ? 0 : step >= 0.1 ? 1 : 2;
    const tickvals = [];
    for (let k = Math.ceil(from / step - 1e-9); k * step <= to + 1e-9; k++) tickvals.push(k * step);
    return { tickvals, ticktext: tickvals.map((v) => clock(v, digits)) };
  }

  /* Figures: over the time of a video, or, with `own_axes`, over whatever their layout says. */
  const figures = [];
  const whole = [0, data.duration_s || 1];
  let range = whole;
  const PAPER_WIDTH = { wide: 660, small: 320 };

  function styled(figure) {
    const { panel, box } = figure;
    const small = box.closest(".plot").classList.contains("small");
    const width = paper.matches || printing ? PAPER_WIDTH[small ? "small" : "wide"] : box.clientWidth;
    const spec = painted({ layout: panel.figure.layout }, "").layout;
    const axis = {
      tickfont: { size: 11, color: colour("@muted") },
      gridcolor: colour("@grid"), linecolor: colour("@line"), tickcolor: colour("@line"),
    };
    const layout = {
      ...spec, width, height: panel.height,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      dragmode: panel.own_axes || matchMedia("(pointer: coarse)").matches ? false : "zoom",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("@ink") },
      hoverlabel: {
        bgcolor: colour("@surface"), bordercolor: colour("@line"), align: "left", namelength: -1,
        font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: colour("@ink") },
      },
    };
    for (const key of Object.keys(spec).filter((k) => /^[xy]axis\d*$/.test(k))) layout[key] = { ...axis, ...spec[key] };
    if (!panel.own_axes) {
      layout.xaxis = { ...layout.xaxis, range: [...range], showline: true, ...ticks(range, width) };
    }
    return { traces: panel.figure.data.map((trace) => painted(trace, "")), layout };
  }
  const CONFIG = { displayModeBar: false, doubleClick: false, responsive: false, showTips: false };
  function draw(figure) {
    const { traces, layout } = styled(figure);
    return Plotly.react(figure.graph, traces, layout, CONFIG);
  }
  function drawAll() {
    resolved = new Map();
    figures.forEach(draw);
    changed.forEach((listen) => listen());
  }

  /* All figures share one span of time. */
  const changed = [];
  let moving = false;
  function show(next) {
    if (moving) return;
    const least = Math.min(0.2, whole[1]);
    let [from, to] = next ?? whole;
    from = Math.max(0, from);
    to = Math.min(whole[1], Math.max(to, from + least));
    range = [from, to];
    moving = true;
    for (const { graph, panel } of figures) {
      if (panel.own_axes) continue;
      const marks = ticks(range, graph.clientWidth);
      Plotly.relayout(graph, { "xaxis.range": [...range], "xaxis.tickvals": marks.tickvals, "xaxis.ticktext": marks.ticktext });
    }
    moving = false;
    changed.forEach((listen) => listen());
  }

  function mount() {
    const waiting = [...document.querySelectorAll("[data-plot]")];
    // One figure per frame: the page answers while a long list of curves is drawn.
    const next = () => {
      const box = waiting.shift();
      if (!box) {
        root.dataset.ready = "yes";
        return;
      }
      const panel = data.panels[Number(box.dataset.plot)];
      const figure = { box, panel, graph: box.querySelector(".graph"), cursor: box.querySelector(".cursor") };
      figures.push(figure);
      draw(figure);
      figure.graph.on("plotly_relayout", (event) => {
        if (!panel.own_axes && event["xaxis.range[0]"] !== undefined) show([event["xaxis.range[0]"], event["xaxis.range[1]"]]);
      });
      figure.graph.addEventListener("dblclick", () => show(null));
      new ResizeObserver(() => {
        if (!paper.matches && !printing && box.clientWidth && box.clientWidth !== figure.graph.layout.width) {
          draw(figure);
          changed.forEach((listen) => listen());
        }
      }).observe(box);
      changed.forEach((listen) => listen());
      requestAnimationFrame(next);
    };
    next();
  }

  /* Place of a time within a figure, in pixels of its box. The margins are ours, on every figure. */
  function plotArea(figure) {
    const { margin, width, height } = figure.graph.layout;
    return { left: margin.l, right: width - margin.r, top: margin.t, bottom: height - margin.b };
  }
  function toPixel(figure, seconds) {
    const area = plotArea(figure);
    return area.left + ((seconds - range[0]) / (range[1] - range[0])) * (area.right - area.left);
  }
  function toSeconds(figure, pixel) {
    const area = plotArea(figure);
    return range[0] + ((pixel - area.left) / (area.right - area.left)) * (range[1] - range[0]);
  }

  /* Theme */
  const button = document.getElementById("theme"), word = document.getElementById("theme-word");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  function label() { word.textContent = isDark() ? "Light" : "Dark"; }
  if (["light", "dark"].includes(stored.get())) root.dataset.theme = stored.get();
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    stored.set(root.dataset.theme);
    label();
    drawAll();
  });
  dark.addEventListener("change", () => { label(); drawAll(); });
  label();

  /* Paper: light colours and a fixed width, before the browser lays out its sheets. */
  let printing = false;
  paper.addEventListener("change", drawAll);
  addEventListener("beforeprint", () => {
    printing = true;
    root.dataset.screen = root.dataset.theme ?? "";
    root.dataset.theme = "light";
    drawAll();
  });
  addEventListener("afterprint", () => {
    printing = false;
    if (root.dataset.screen) root.dataset.theme = root.dataset.screen;
    else delete root.dataset.theme;
    delete root.dataset.screen;
    drawAll();
  });

  return {
    data, figures, mount, show, clock, colour, toPixel, toSeconds, plotArea,
    get range() { return range; },
    get zoomed() { return range[0] !== whole[0] || range[1] !== whole[1]; },
    onChange(listen) { changed.push(listen); },
  };
})();
