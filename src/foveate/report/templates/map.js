// The four pictures show the same place: a point of one is marked on the others.
(() => {
  const pictures = [...document.querySelectorAll("#views img")];
  const spots = pictures.map((picture) => {
    const frame = document.createElement("div");
    frame.className = "frame";
    picture.replaceWith(frame);
    const spot = document.createElement("span");
    spot.className = "spot";
    spot.hidden = true;
    frame.append(picture, spot);
    return spot;
  });
  // "object-fit: contain" at the left top: the drawn part of the element.
  const drawn = (picture) => {
    const scale = Math.min(picture.clientWidth / picture.naturalWidth, picture.clientHeight / picture.naturalHeight);
    return [picture.naturalWidth * scale, picture.naturalHeight * scale];
  };
  const hide = () => spots.forEach((spot) => { spot.hidden = true; });
  pictures.forEach((picture) => {
    picture.addEventListener("pointermove", (event) => {
      const [width, height] = drawn(picture);
      const x = event.offsetX / width, y = event.offsetY / height;
      if (x > 1 || y > 1) return hide();
      spots.forEach((spot, at) => {
        const [w, h] = drawn(pictures[at]);
        spot.hidden = pictures[at] === picture;
        spot.style.left = `${x * w}px`;
        spot.style.top = `${pictures[at].offsetTop + y * h}px`;
      });
    });
    picture.addEventListener("pointerleave", hide);
  });
})();
