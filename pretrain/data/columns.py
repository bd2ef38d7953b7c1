"""The column of a parquet file that holds the text."""

from __future__ import annotations

import pyarrow as pa

from spanbert.errors import UserError
from spanbert.terminal import printable

TEXT_TYPES = (
    pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view(), pa.null(),
)  # fmt: skip


def text_column(schema: pa.Schema, path: str, source: str) -> str:
    """The column that a text field is in. Raises UserError when there is none, or when it holds no text."""
    column = path if path in schema.names else path.split(".")[0]
    if column not in schema.names:
        raise UserError(
            f"{source} has no column {path!r} (it has {printable(', '.join(schema.names))}): name the text column with --text-field"
        )
    kind = schema.field(column).type
    for name in [] if path == column else path.split(".")[1:]:
        if not pa.types.is_struct(kind) or kind.get_field_index(name) < 0:
            raise UserError(
                f"{source} has no column {path!r} (column {column!r} is {printable(str(kind))}): use --text-field"
            )
        kind = kind.field(name).type
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_struct(inner):
        inside = printable(", ".join(f"{path}.{inner.field(i).name}" for i in range(inner.num_fields)))
        raise UserError(
            f"{source}: column {path!r} is {printable(str(inner))}: name the text in it with --text-field (one of {inside})"
        )
    if inner not in TEXT_TYPES:
        raise UserError(
            f"{source}: column {path!r} is {printable(str(kind))}, expected text: name the text column with --text-field"
        )
    return column
