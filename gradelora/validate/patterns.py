"""What student text is searched for (RE2 syntax).  Matches are counted, never kept."""

# White space, separators, format and control characters, and letters that show nothing.
BLANK = r"^[\s\p{Z}\p{Cf}\p{Cc}\x{115F}\x{1160}\x{2800}\x{3164}\x{FFA0}]*$"

# Everything below 0x20 but tab and the line and page breaks; DEL.
CONTROL_CHAR = r"[\x00-\x08\x0E-\x1F\x7F]"

# Spellings of control tokens: harmony and ChatML, Llama and Mistral, Gemma.
CONTROL_TOKEN = r"<\|[A-Za-z0-9_./ -]{1,40}\|>|\[/?INST\]|<</?SYS>>|</?s>|<(?:bos|eos|pad|unk)>|<(?:start|end)_of_turn>"

# Phrases after "Prompt injection" in OWASP's LLM01, narrowed to grading.
PROMPT_INJECTION = (
    r"(?i)(?:ignore|disregard|forget|override)\s+(?:\w+\s+){0,3}"
    r"(?:previous|prior|above|earlier|preceding|all|your|the)\s+(?:\w+\s+){0,3}"
    r"(?:instructions?|prompts?|rules|rubric|guidelines)"
    r"|(?:give|award|assign|grant)\s+(?:\w+\s+){0,4}(?:full|maximum|max|highest|perfect|top)\s+"
    r"(?:\w+\s+)?(?:marks?|scores?|points?|credits?|grades?)"
    r"|(?:score|grade|mark|rate)\s+this\s+(?:\w+\s+){0,2}(?:as\s+)?(?:correct|full|maximum|perfect|[0-9]+)"
    r"|you\s+are\s+now\s+(?:a|an|the|in)\b|(?:system|developer)\s*(?:prompt|message)\b"
    r"|<\|(?:im_)?start\|>\s*(?:system|developer|assistant)"
    r"|\"score\"\s*:\s*[0-9]"
)

# What every match of the next three holds.
PII_HINT = r"[0-9@]"
PII = {
    "e_mail": r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}",
    "phone": (
        r"\+[0-9]{1,3}[ .()/-]{0,2}(?:[0-9][ .()/-]{0,2}){7,12}\b"
        r"|\(?\b[0-9]{3}\)?[ .-][0-9]{3}[ .-][0-9]{4}\b|\b0[0-9]{2,4}[ /-][0-9]{5,8}\b"
    ),
    "student_number": (
        r"(?i)\b(?:student|matric(?:ulation)?|candidate|pupil|enrol?ment)\s*(?:id|no|nr|number|num)?\s*[.:#]*\s*"
        r"[a-z]{0,3}[0-9]{5,10}\b|\b[SsUu][0-9]{7,9}\b"
    ),
}
