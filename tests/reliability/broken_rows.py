"""Files of rows that are broken: lines, cells, columns, whole files, and what is named in their
place.
"""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from vpretrain.language.data import word_problems

GOOD = {
    split: word_problems.problems(split, 24, seed=0) for split in ("stream", "feedback", "test")
}
CELLS = st.one_of(
    st.sampled_from(
        [None, True, 0, -1, 1e308, 10**30, float("nan"), float("inf"), [], {}, ["x"], {"a": 1}]
    ),
    st.sampled_from(
        [
            "",
            " ",
            "\n",
            "\0",
            "\ud800",
            "\udfff\ud800",
            "ä" * 3,
            "\u2028",
            "x" * 200_000,
            "7" * 50_000,
            "</s>",
            "<unk>",
        ]
    ),
    st.text(max_size=20),
)
LINES = [
    b"",
    b" ",
    b"{",
    b"{}",
    b"[]",
    b"null",
    b"1",
    b'"x"',
    b"NaN",
    b"-Infinity",
    b'{"problem": NaN, "solution": NaN}',
    b"\xff\xfe",
    b'{"problem": "\xff", "solution": "1"}',
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"1" * 10_000,
    b'{"problem": ' + b"1" * 9_000 + b"}",
    b'{"problem": "1", "problem": "2 + 2", "solution": "= 4"}',
    b'{"problem": "1 + 1", "solution": "\\ud800"}',
    b"\0",
    b"\xef\xbb\xbf{}",
    b'{"problem": "2 + 3", "solution": "= 5"} {"x": 1}',
    b'{"problem": "1", "solution": "= 1", "x": 1e999}',
    b"\r",
    b"\x0c",
    b"\x1f\x8b",
    '{"problem": "½ + ½", "solution": "= 1"}'.encode("utf-16"),
    '{"problem": "é", "solution": "é"}'.encode("latin-1"),
]
COLUMNS = [
    pa.array([1, 2, 3]),
    pa.array([1.5, float("nan"), None]),
    pa.array([True, None, False]),
    pa.array([None, None, None]),
    pa.array(["a", None, ""]),
    pa.array([b"a", b"\xff", None]),
    pa.array([["a"], [], None]),
    pa.array([{"a": 1}, None, {"a": 2}]),
    pa.array(["a", "b", "a"]).dictionary_encode(),
    pa.array([0, 1, 2], pa.timestamp("s")),
    pa.array(["x", "y", "z"], pa.large_string()),
    pa.array(["= 1", "= 2", "= 3"], pa.string_view()),
    pa.array([b"ab", b"cd", b"ef"], pa.binary(2)),
    pa.array([1, 2, None], pa.decimal128(5, 2)),
    pa.StringArray.from_buffers(
        3, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffb")
    ),
]


@st.composite
def broken_rows(draw):
    """Which place, what kind of file, its bytes, and how the recipe reads it."""
    which = draw(st.sampled_from(["stream", "feedback", "test"]))
    kind = draw(st.sampled_from(["jsonl", "jsonl", "parquet", "text"]))
    rows = [dict(row) for row in GOOD[which]]
    if kind == "parquet":
        columns = {name: [row[name] for row in rows] for name in ("problem", "solution")}
        columns = draw(
            st.sampled_from(
                [columns]
                + [{"problem": a, "solution": b} for a in COLUMNS[:6] for b in COLUMNS]
                + [{}]
            )
        )
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(columns), sink)
        content = sink.getvalue().to_pybytes()
    else:
        lines = []
        for row in rows:
            lines.append(json.dumps(row).encode())
        for _ in range(draw(st.integers(0, 3))):
            at = draw(st.integers(0, len(rows) - 1))
            cell = {draw(st.sampled_from(["problem", "solution", "x"])): draw(CELLS)}
            lines[at] = draw(
                st.one_of(
                    st.sampled_from(LINES),
                    st.binary(max_size=30),
                    st.just(json.dumps({**rows[at], **cell}).encode()),
                    st.just(json.dumps(cell).encode()),
                )
            )
        content = draw(st.sampled_from([b"\n", b"\n", b"\r\n", b"\n\n", b"\r"])).join(lines)
    place = draw(st.integers(0, max(0, len(content) - 1)))
    content = draw(
        st.sampled_from(
            [
                *[content] * 6,
                content[:place],
                content[:place] + b"\xff" + content[place + 1 :],
                b"",
                b"\xef\xbb\xbf" + content,
                content.decode("latin-1").encode("utf-16"),
                gzip.compress(content),
                gzip.compress(content)[:-9],
            ]
        )
    )
    path = draw(
        st.sampled_from(
            ["rows"] * 12
            + [
                "loop",
                "dir",
                "pipe",
                "ro*s",
                "l*p",
                "no/such",
                "x" * 300,
                "a\0b",
                "~nobody-there",
                "",
            ]
        )
    )
    options = draw(
        st.sampled_from(
            [
                {},
                {},
                {"skip_rows": 3},
                {"rows": 9},
                {"rows": 1, "skip_rows": 10**12},
                {"document": "line"},
            ]
        )
    )
    reads = (
        {"problem": "prompt", "solution": "solution"}
        if draw(st.booleans())
        else {"solution": "text"}
    )
    spec = {"kind": kind, "path": path, **options}
    if kind == "text":
        spec.setdefault("document", draw(st.sampled_from(["file", "paragraph", "line"])))
    else:
        spec = {name: value for name, value in spec.items() if name != "document"}
        spec |= {role: column for column, role in reads.items()}
    return (
        which,
        spec,
        content,
        draw(st.sampled_from(["stop", "skip"])),
        draw(st.sampled_from(["onehot", "document_weights", "field"])),
    )
