// The first script of a page that needs no server: it offers the source that the views then use.

import { StaticSource } from "./source_static.js";

globalThis.spanbertSource = new StaticSource(JSON.parse(document.getElementById("packed").textContent));
