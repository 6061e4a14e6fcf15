"use strict";
// One canvas for the whole page: browsers allow about sixteen WebGL contexts. It moves to the gallery that is looked at.

const MARK = "#d8492f";
const RECONSTRUCTION = "#ff8c00";
const RADII = { H: 0.2 };

class Viewer {
  constructor() {
    this.place = document.createElement("div");
    this.place.className = "viewer";
    this.style = "sticks";
    this.spins = false;
    this.showsOriginal = true;
    this.leave = null; // what to do in the place that it leaves
  }

  // Draws an item in the given element; false where the browser has no WebGL.
  show(parent, item) {
    if (this.place.parentNode !== parent) {
      if (this.leave) this.leave();
      parent.prepend(this.place);
    }
    if (!this.canvas && !this.begin()) return false;
    this.item = item;
    this.draw();
    this.canvas.zoomTo();
    this.canvas.zoom(1.2);
    this.canvas.render();
    return true;
  }

  begin() {
    try {
      this.canvas = $3Dmol.createViewer(this.place, { backgroundColor: "white", antialias: true });
    } catch (error) {
      this.canvas = null;
    }
    if (!this.canvas) return false;
    new ResizeObserver(() => this.canvas.resize()).observe(this.place);
    return true;
  }

  draw() {
    this.canvas.removeAllModels();
    this.canvas.removeAllShapes();
    const { scene, original } = this.item;
    if (original && this.showsOriginal) {
      this.add(original, {});
      this.add(scene, { color: RECONSTRUCTION, opacity: 0.7 });
    } else {
      this.add(scene, {});
    }
    for (const [start, end] of scene.edges) {
      this.canvas.addLine({ start: point(start), end: point(end), color: "#888888" });
    }
    for (const atom of scene.marked) {
      this.canvas.addSphere({ center: point(scene.positions[atom]), radius: 0.55, color: MARK, opacity: 0.6 });
    }
    this.canvas.spin(this.spins ? "y" : false);
    this.canvas.render();
  }

  add(scene, paint) {
    const atoms = scene.symbols.map((symbol, index) => ({
      elem: symbol, serial: index, ...point(scene.positions[index]), bonds: [], bondOrder: [],
    }));
    for (const [first, second, order] of scene.bonds) {
      atoms[first].bonds.push(second);
      atoms[first].bondOrder.push(order);
      atoms[second].bonds.push(first);
      atoms[second].bondOrder.push(order);
    }
    const model = this.canvas.addModel();
    model.addAtoms(atoms);
    const isLaidOver = "opacity" in paint;
    for (const symbol of new Set(scene.symbols)) {
      const ball = RADII[symbol] || 0.32;
      const style = this.style === "spheres" && !isLaidOver
        ? { sphere: { scale: 1, ...paint } }
        : { stick: { radius: isLaidOver ? 0.15 : 0.12, ...paint }, sphere: { radius: isLaidOver ? 0.22 : ball, ...paint } };
      model.setStyle({ elem: symbol }, style);
    }
  }
}

function point([x, y, z]) {
  return { x, y, z };
}
