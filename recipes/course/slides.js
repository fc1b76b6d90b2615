const slides = [...document.querySelectorAll("section")];
const keys = { ArrowRight: 1, PageDown: 1, " ": 1, ArrowLeft: -1, PageUp: -1 };
addEventListener("keydown", event => {
  const turn = keys[event.key];
  if (!turn) return;
  event.preventDefault();
  const now = slides.findIndex(one => one.getBoundingClientRect().bottom > 10);
  const next = Math.max(0, Math.min(slides.length - 1, now + turn));
  slides[next].scrollIntoView();
});
