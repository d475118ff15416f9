"use strict";
/* One moment for everything: the video leads, cursors and readouts follow, a click goes there. */
(() => {
  const video = document.getElementById("video");
  const duration = page.data.duration_s;
  let still = 0; // the moment when there is no video that plays
  let broken = !video;

  function now() {
    return broken ? still : video.currentTime;
  }
  function seek(seconds) {
    const target = Math.min(duration, Math.max(0, seconds));
    still = target;
    if (!broken) video.currentTime = Math.min(target, video.duration || target);
    dirty = true;
  }

  /* Cursors and readouts */
  let dirty = true;
  let drawn = NaN;

  function nearest(times, t) {
    let low = 0, high = times.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (times[middle] <= t) low = middle; else high = middle;
    }
    return Math.abs(times[low] - t) <= Math.abs(times[high] - t) ? low : high;
  }
  function readouts(figure) {
    if (figure.slots) return figure.slots;
    const holder = document.querySelector(`[data-readouts="${figure.box.dataset.plot}"]`);
    holder.replaceChildren();
    const several = figure.panel.readouts.length > 1;
    figure.slots = figure.panel.readouts.map((spec) => {
      const slot = document.createElement("span"), value = document.createElement("b");
      const dot = document.createElement("i");
      dot.style.background = `var(--${spec.color.slice(1)})`;
      slot.append(dot, value);
      if (several) slot.title = spec.name;
      if (spec.unit) slot.append(` ${spec.unit}`);
      holder.append(slot);
      return { spec, value, trace: figure.panel.figure.data[spec.trace] };
    });
    return figure.slots;
  }
  function follow(t) {
    const [from, to] = page.range;
    for (const figure of page.figures) {
      const inside = t >= from - 1e-6 && t <= to + 1e-6;
      const area = page.plotArea(figure);
      const style = figure.cursor.style;
      style.visibility = inside ? "visible" : "hidden";
      style.top = `${area.top}px`;
      style.height = `${area.bottom - area.top}px`;
      style.transform = `translateX(${(page.toPixel(figure, t) - 0.75).toFixed(2)}px)`;
      for (const { spec, value, trace } of readouts(figure)) {
        const i = trace.x.length ? nearest(trace.x, t) : -1;
        const y = i >= 0 && Math.abs(trace.x[i] - t) <= spec.reach_s ? trace.y[i] : null;
        const text = y === null || y === undefined ? "–" : y.toFixed(spec.digits).replace("-", "\u2212");
        if (value.textContent !== text) value.textContent = text;
      }
    }
  }
  function tick() {
    const t = Math.min(duration, now());
    if (dirty || t !== drawn) {
      follow(t);
      drawn = t;
      dirty = false;
    }
    requestAnimationFrame(tick);
  }

  /* A click goes to its moment; a drag is a zoom and is left to the figure. */
  function listen(figure) {
    let pressed = null;
    figure.box.addEventListener("pointerdown", (event) => {
      pressed = event.isPrimary && event.button === 0 ? [event.clientX, event.clientY] : null;
    }, true);
    // the figure covers the page while the pointer is down, so the release is caught at the top
    addEventListener("pointerup", (event) => {
      if (!pressed) return;
      const [x, y] = pressed;
      pressed = null;
      if (Math.hypot(event.clientX - x, event.clientY - y) > 5) return;
      const box = figure.box.getBoundingClientRect(), area = page.plotArea(figure);
      const at = event.clientX - box.left;
      if (at >= area.left - 8 && at <= area.right + 8) seek(page.toSeconds(figure, at));
    }, true);
    figure.box.addEventListener("pointercancel", () => { pressed = null; });
  }
  const heard = new Set();
  const zoomOut = document.getElementById("zoom-out");
  page.onChange(() => {
    for (const figure of page.figures) {
      if (!heard.has(figure)) { heard.add(figure); listen(figure); }
    }
    zoomOut.hidden = !page.zoomed;
    const [from, to] = page.range;
    zoomOut.textContent = `Show all (now ${page.clock(from, 1)} – ${page.clock(to, 1)})`;
    dirty = true;
  });
  zoomOut.addEventListener("click", () => page.show(null));

  for (const button of document.querySelectorAll("[data-seek]")) {
    button.addEventListener("click", () => seek(Number(button.dataset.seek)));
  }

  /* Keyboard: the video and the controls keep their own keys. */
  addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.defaultPrevented) return;
    if (event.target.closest("video, button, a, input, select, textarea, summary, .scroll")) return;
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) seek(now() + step);
    else if (event.key === " " && !broken) video.paused ? video.play().catch(() => {}) : video.pause(); // a quick second press interrupts
    else return;
    event.preventDefault();
  });

  if (video) {
    video.addEventListener("seeked", () => { dirty = true; });
    let retried = false;
    const failed = () => {
      const source = video.getAttribute("src");
      if (!retried && source.startsWith("data:")) {
        // Some browsers play no video from a data URI but do from a blob.
        retried = true;
        const [head, body] = source.split(",", 2);
        const bytes = Uint8Array.from(atob(body), (c) => c.charCodeAt(0));
        video.src = URL.createObjectURL(new Blob([bytes], { type: head.slice(5, head.indexOf(";")) }));
        return;
      }
      broken = true;
      document.getElementById("video-trouble").hidden = false;
      dirty = true;
    };
    video.addEventListener("error", failed);
    if (video.error) failed(); // before this script ran
  }
  page.mount();
  requestAnimationFrame(tick);
})();
