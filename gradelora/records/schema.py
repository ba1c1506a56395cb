"""The fields of the format and the columns that are stored."""

import pyarrow as pa

MISSING = object()

# name -> (kind, required).  A null stands for absent where a field is not required.
RECORD_FIELDS: dict[str, tuple[str, bool]] = {
    "score": ("number", True),
    "max_score": ("number", True),
    "normalized_score": ("number", True),
    "feedback": ("text", False),
    "student_id": ("text", False),
    "group": ("text", False),
}
ITEM_FIELDS: dict[str, tuple[str, bool]] = {
    "question": ("text", True),
    "answer": ("text", True),
    "score": ("number", True),
    "max_score": ("number", True),
    "rubric": ("text", False),
    "question_id": ("text", False),
    "student_id": ("text", False),
    "group": ("text", False),
    "rater2_score": ("number", False),
    "feedback": ("text", False),
}
ALIGNMENT = "rubric_alignment"

ITEMS = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("record_id", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("record_index", pa.int32(), nullable=False),
        pa.field("item_index", pa.int32(), nullable=False),
        pa.field("question", pa.string(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("rubric", pa.string()),
        pa.field("question_id", pa.string()),
        pa.field("question_key", pa.string(), nullable=False),
        pa.field("student_id", pa.string()),
        pa.field("group", pa.string()),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("max_score", pa.float64(), nullable=False),
        pa.field("rater2_score", pa.float64()),
        pa.field("feedback", pa.string()),
        pa.field("split", pa.string(), nullable=False),
    ]
)
RECORDS = pa.schema(
    [
        pa.field("record_id", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("record_index", pa.int32(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("max_score", pa.float64(), nullable=False),
        pa.field("normalized_score", pa.float64(), nullable=False),
        pa.field("feedback", pa.string()),
    ]
)
