// A film: the items of every picture in the order in which they stand, swapped in place.
"use strict";

class Film {
  constructor(whiteboard, { frames, labels }) {
    Object.assign(this, { board: whiteboard, frames, labels, timer: null });
    this.bar = whiteboard.root.querySelector(".film");
    this.slider = this.bar.querySelector("input");
    this.button = this.bar.querySelector("button");
    this.items = [...this.walk(whiteboard.data.net, part(whiteboard.svg, ".net"))];
    this.slider.max = frames.length - 1;
    this.slider.addEventListener("input", () => {
      this.pause();
      this.show(Number(this.slider.value));
    });
    this.button.addEventListener("click", () => (this.timer ? this.pause() : this.play()));
    whiteboard.go(Infinity); // what changes is values: all of them are seen
    this.show(0);
  }

  // Groups with their items, as film_page.py walks them.
  * walk(net, group) {
    const groups = [...group.children].filter((child) => child.matches("g"));
    for (const [i, g] of groups.entries()) {
      const item = net.items[net.drawn[i]];
      yield { g, id: item.id };
      if (item.net) yield* this.walk(item.net, part(g, ".inside > .within"));
    }
  }

  show(k) {
    const { items, about } = this.frames[k];
    this.items.forEach(({ g, id }, i) => {
      const [body, ...ports] = items[i];
      if (!id) {
        g.innerHTML = body;
        return;
      }
      part(g, ".folded").innerHTML = body;
      g.querySelectorAll(":scope > .port").forEach((port, j) => { port.innerHTML = ports[j]; });
      this.board.prepareToggles(g, id, [[UNFOLD, "unfold"]]);
    });
    if (this.board.stack) this.board.layout(); // what was drawn anew has to be moved anew
    this.board.about = about;
    this.slider.value = k;
    this.slider.setAttribute("aria-valuetext", this.labels[k]);
    this.bar.querySelector("output").textContent = this.labels[k];
    this.board.go(this.board.step);
    if (!this.board.panel.hidden && this.board.shown) this.board.show(this.board.shown);
  }

  play() {
    const last = this.frames.length - 1;
    const next = () => {
      const k = Number(this.slider.value);
      if (k === last) this.pause();
      else this.show(k + 1);
    };
    if (Number(this.slider.value) === last) this.show(0);
    this.timer = setInterval(next, 800);
    this.button.textContent = "pause";
  }

  pause() {
    clearInterval(this.timer);
    this.timer = null;
    this.button.textContent = "play";
  }
}
