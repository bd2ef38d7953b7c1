"""Our JavaScript modules as one script: what is rewritten, and that nothing unknown gets by. (That it runs: test_standalone.)"""

from __future__ import annotations

import pytest

from web.explorer.bundle import BundleError, bundle


def test_modules_stand_in_the_order_of_their_imports_each_once():
    script = bundle(
        {
            "main.js": 'import { a } from "./a.js";\nimport { b as c, d } from "./views/b.js";\na(c, d);',
            "views/b.js": 'import * as all from "../a.js";\nexport const b = all.a();\nexport class d {}',
            "a.js": "export function a() {}\nconst own = 1;\nexport { own as theirs };",
            "unused.js": "never();",
        },
        "main.js",
    )
    assert script == (
        '"use strict";\n{\n'
        "// --- a.js\nconst module0 = (() => {\nfunction a() {}\nconst own = 1;\nreturn { theirs: own, a };\n})();\n"
        "// --- views/b.js\nconst module1 = (() => {\n"
        "const all = module0;\nconst b = all.a();\nclass d {}\nreturn { b, d };\n})();\n"
        "// --- main.js\nconst module2 = (() => {\n"
        "const { a } = module0;\nconst { b: c, d } = module1;\na(c, d);\nreturn {  };\n})();\n"
        "}\n"
    )


@pytest.mark.parametrize(
    "text",
    [
        'import a from "./a.js";',
        'import "./a.js";',
        'import { a } from "a";',
        'import { a } from "https://example.org/a.js";',
        "export default function f() {}",
        'export * from "./a.js";',
        'export { a } from "./a.js";',
        "export function a() {} export const b = 1;\n  export const c = 2;",
        'const a = await import("./a.js");',
        "const here = import.meta.url;",
    ],
)
def test_an_unknown_form_is_refused(text):
    with pytest.raises(BundleError, match=r"main\.js: cannot bundle"):
        bundle({"main.js": text, "a.js": "export const a = 1;"}, "main.js")


@pytest.mark.parametrize("text", ['const end = "</script>";', "const begin = '<!-- ';"])
def test_what_would_end_the_script_is_refused(text):
    with pytest.raises(BundleError, match="would end the page's script"):
        bundle({"main.js": text}, "main.js")


def test_a_missing_module_and_a_circle_are_refused():
    with pytest.raises(BundleError, match=r"main\.js imports b\.js, which is not"):
        bundle({"main.js": 'import { b } from "./b.js";'}, "main.js")
    circle = {"main.js": 'import { b } from "./b.js";', "b.js": 'import { a } from "./main.js";\nexport const b = 1;'}
    with pytest.raises(BundleError, match=r"main\.js → b\.js → main\.js"):
        bundle(circle, "main.js")
