globalThis.ok = globalThis.spanbertSource;
