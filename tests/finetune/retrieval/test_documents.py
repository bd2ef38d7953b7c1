"""Files of every kind as documents, and what cannot be read named."""

import io
import json
import sys
from pathlib import Path

import pytest

from finetune.retrieval.documents import Document, document_of_bytes, read_documents
from finetune.retrieval.readers import joined_lines
from spanbert.errors import UserError


def pdf(*pages: list[str]) -> bytes:
    """A PDF of these pages of lines, 14 points apart, written out by hand."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", "", "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    kids = []
    for lines in pages:
        shown = "".join(f"({line}) Tj T* " for line in lines)
        stream = f"BT /F1 12 Tf 14 TL 72 720 Td {shown}ET"
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
        kids.append(f"{len(objects) + 1} 0 R")
        font = "/Resources << /Font << /F1 3 0 R >> >>"
        objects.append(f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] {font} /Contents {len(objects)} 0 R >>")
    objects[1] = f"<< /Type /Pages /Count {len(kids)} /Kids [{' '.join(kids)}] >>"
    content, offsets = "%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(content))
        content += f"{number} 0 obj\n{body}\nendobj\n"
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    content += f"xref\n0 {size}\n0000000000 65535 f \n{table}trailer\n<< /Size {size} /Root 1 0 R >>\n"
    return (content + f"startxref\n{content.index('xref')}\n%%EOF").encode()


def docx() -> bytes:
    import docx

    document = docx.Document()
    document.add_heading("Upkeep", 1)
    document.add_paragraph("Oil the hinge in May.")
    table = document.add_table(1, 2)
    table.cell(0, 0).text, table.cell(0, 1).text = "Hinge", "brass"
    document.add_heading("Repair", 2)
    document.add_paragraph("Ring Marta.")
    document.core_properties.title = "The gate"
    target = io.BytesIO()
    document.save(target)
    return target.getvalue()


def sections(document: Document) -> list[tuple[str, str]]:
    """(label, the text that begins there)"""
    return [(one.label, document.text[one.start :][:12]) for one in document.sections]


def test_html_headings_are_sections_and_scripts_are_no_text() -> None:
    page = "<title>Gate &amp; hinge</title><script>x=1</script><h1>Up<b>keep</b></h1><p>Oil the hinge.<h2></h2><h2>Café</h2>Ring Marta."
    document = document_of_bytes("a.html", page.encode())
    assert document.title == "Gate & hinge"
    assert "x=1" not in document.text and "Oil the hinge." in document.text
    assert [label for label, _ in sections(document)] == ["Upkeep", "Café"]
    assert [text.startswith(label) for label, text in sections(document)] == [True, True]


def test_html_in_the_encoding_that_it_declares() -> None:
    page = '<meta charset="iso-8859-1"><p>Der Schlüssel hängt am Haken.'.encode("latin-1")
    assert "Schlüssel hängt" in document_of_bytes("a.htm", page).text


def test_markdown_headings_but_not_those_in_code() -> None:
    text = "Intro\n\n# Upkeep #\nOil.\n```\n# no heading\n```\nRepair\n------\nRing.\n"
    document = document_of_bytes("notes.md", text.encode())
    assert (document.text, document.title) == (text, "Upkeep")
    assert sections(document) == [("Upkeep", "# Upkeep #\nO"), ("Repair", "Repair\n-----")]
    assert document.section_at(2) is None
    assert document.section_at(text.index("Oil")) == "Upkeep"
    assert document.section_at(len(text)) == "Repair"


def test_pdf_pages_are_sections() -> None:
    long = "The hinge of the gate by the river is made of brass and has to be oil-"
    document = document_of_bytes("gate.pdf", pdf([long, "ed in May."], ["Ring Marta."]))
    assert document.text == f"{long[:-1]}ed in May.\n\nRing Marta."
    assert sections(document) == [("page 1", "The hinge of"), ("page 2", "Ring Marta.")]


def test_pdf_without_text_and_damaged_files_say_so() -> None:
    with pytest.raises(UserError, match=r"^scan\.pdf: holds no text: scanned pages"):
        document_of_bytes("scan.pdf", pdf([]))
    with pytest.raises(UserError, match=r"^a\.pdf: not readable as PDF"):
        document_of_bytes("a.pdf", b"%PDF-1.4 nonsense")
    with pytest.raises(UserError, match="not readable as a Word document"):
        document_of_bytes("a.docx", b"PK nonsense")
    with pytest.raises(UserError, match="holds no text"):
        document_of_bytes("a.html", b"  ")
    with pytest.raises(UserError, match="not UTF-8 text"):
        document_of_bytes("a.txt", "Schlüssel".encode("latin-1"))
    with pytest.raises(UserError, match="of a kind that is not read"):
        document_of_bytes("a.exe", b"text")


def test_docx_paragraphs_tables_and_headings() -> None:
    document = document_of_bytes("a.docx", docx())
    assert document.title == "The gate"
    assert document.text == "Upkeep\nOil the hinge in May.\nHinge\tbrass\nRepair\nRing Marta.\n"
    assert sections(document) == [("Upkeep", "Upkeep\nOil t"), ("Repair", "Repair\nRing ")]


@pytest.mark.parametrize(("name", "library"), [("a.pdf", "pypdf"), ("a.docx", "docx"), ("a.html", "inscriptis")])
def test_a_library_that_is_absent_is_named_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, name: str, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=r"files need the extra packages: pip install 'spanbert\[documents\]'\.$"):
        document_of_bytes(name, b"x")


def test_a_folder_is_read_in_order_and_the_rest_is_named(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.txt").write_text("\ufeffOne.\r\nTwo.", encoding="utf-8")
    (tmp_path / "a.txt").write_bytes("Ключ".encode("utf-16"))
    (tmp_path / "bad.txt").write_bytes(b"\xff\xff\xff")
    (tmp_path / "empty.md").write_text(" \n")
    (tmp_path / "picture.png").write_bytes(b"x")
    (tmp_path / ".hidden.txt").write_text("no")
    lines = [
        {"text": "First \ud800.", "id": "x"},
        {"text": "Second.", "title": "Two"},
        {"no": 1},
        {"text": "", "id": 3},
    ]
    lines += [{"text": "Again.", "id": "x"}]
    (tmp_path / "many.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "{\n")
    documents, skipped = read_documents([tmp_path])
    assert [(one.id, one.title, one.text) for one in documents] == [
        ("a.txt", "a", "Ключ"),
        ("many.jsonl#x", "x", "First \ufffd."),
        ("many.jsonl#2", "Two", "Second."),
        ("sub/b.txt", "b", "One.\nTwo."),
    ]
    reasons = {one.path.removeprefix(f"{tmp_path}/"): one.reason for one in skipped}
    assert reasons.keys() == {"bad.txt", "empty.md", "picture.png", "many.jsonl, line 3", "many.jsonl, line 4",
                              "many.jsonl, line 6", "many.jsonl#x"}  # fmt: skip
    assert reasons["bad.txt"].startswith("not UTF-8") and reasons["empty.md"] == "holds no text"
    assert str(skipped[0]) == f"{tmp_path}/picture.png: {skipped[0].reason}"


def test_files_of_one_name_from_two_folders_stay_apart(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(name)
    documents, skipped = read_documents([tmp_path / "one", tmp_path / "two", tmp_path / "two" / "a.txt"])
    assert [(one.id, one.text) for one in documents] == [("a.txt", "one"), (f"{tmp_path}/two/a.txt", "two")]
    assert [one.reason for one in skipped] == ["given twice"]
    with pytest.raises(UserError, match="no such file or folder"):
        read_documents([tmp_path / "three"])


def test_lines_of_a_layout_become_paragraphs() -> None:
    page = "A heading\nThe key hangs on the hook beside the door of the\nshed. It is new.\nThe second paragraph begins here and goes\non."
    assert joined_lines(page) == (
        "A heading\nThe key hangs on the hook beside the door of the shed. It is new.\n"
        "The second paragraph begins here and goes on."
    )
    assert joined_lines("钥匙挂在门旁边的钩子\n上。") == "钥匙挂在门旁边的钩子上。"
