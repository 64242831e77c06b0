#!/usr/bin/env python3
"""Makes conversations.jsonl, what tests/unit/test_data_conversations.c compares with. No part of
`make check`: only its output is. Needs sentencepiece (Debian: python3-sentencepiece, or PyPI).

    python3 tests/golden/conversations/make_conversations.py

2000 random conversations. One line each: [template, with image, [human, gpt, human, ...], ids, CRC
of ids, CRC of LLaVA's labels or null, CRC of the rule's labels]; a CRC is CRC-32C over int32 little
endian. LLaVA's labels: every round and every prefix up to its answer tokenised again, as LLaVA's
preprocessing does; null: the lengths do not add up and LLaVA masks the whole row. The rule's: each
chunk tokenised once, a token is a target iff it begins inside an answer. Where LLaVA keeps the row
both must be the same, which is checked here too."""
import json
import os
import random
import re
import struct

import sentencepiece

HERE = os.path.dirname(os.path.abspath(__file__))
MODEL = os.path.join(HERE, "..", "mistral_v1", "tokenizer.model.v1")
IGNORE, MARKER, BOS, PAD = -100, -200, 1, 0
SPECIAL = {"<unk>": 0, "<s>": 1, "</s>": 2}
SYSTEM_V1 = ("A chat between a curious user and an artificial intelligence assistant. The assistant "
             "gives helpful, detailed, and polite answers to the user's questions.")
SYSTEM_LLAMA_2 = ("You are a helpful language and vision assistant. You are able to understand the "
                  "visual content that the user provides, and assist the user with a variety of "
                  "tasks using natural language.")
model = sentencepiece.SentencePieceProcessor(model_file=MODEL)


# ---- the tokenizer under LLaVA's wrapper ---------------------------------------------------------------
def tokens(text):
    """BOS, then each chunk between special pieces with a dummy prefix of its own."""
    ids = [BOS]
    for part in re.split("(<unk>|<s>|</s>)", text):
        ids += [SPECIAL[part]] if part in SPECIAL else model.encode(part)
    return ids


def image_tokens(text):
    """Chunks around <image>, every one with a BOS, of which only the first is kept."""
    ids = []
    for i, part in enumerate(text.split("<image>")):
        ids += [MARKER] * (i > 0) + tokens(part)[i > 0:]
    return ids


# ---- prompts: (text, is an answer) ---------------------------------------------------------------------------
def normalise(text):
    if "<image>" not in text:
        return text
    return ("<image>\n" + text.replace("<image>", "").strip()).strip()


def prompt_v1(turns):
    out = [(SYSTEM_V1 + " ", False)]
    for i, text in enumerate(turns):
        if i % 2 == 0:
            out.append((f"USER: {text} ", False))
        else:
            out += [("ASSISTANT:", False)] + [(f" {text}</s>", True)] * (text != "")
    return out


def prompt_instruct(turns, system, first):
    out = []
    for i, text in enumerate(turns):
        if i % 2 == 0:
            head = first * (i > 0) + "[INST] " + system * (i == 0)
            out.append((f"{head}{text} [/INST]", False))
        elif text != "":
            out.append((f" {text} </s>", True))
    return out


def prompt(template, turns):
    if template == "plain":
        return [("<image>", False), (turns[1] + "\n", True)]
    if template == "v1":
        return prompt_v1(turns)
    if template == "mistral_instruct":
        return prompt_instruct(turns, "", "")
    return prompt_instruct(turns, f"<<SYS>>\n{SYSTEM_LLAMA_2}\n<</SYS>>\n\n", "<s>")


# ---- labels as LLaVA makes them -------------------------------------------------------------------------------
def labels_llava(template, text, ids, tokenise):
    """None: thrown away."""
    labels = list(ids)
    if template == "plain":
        n = len(tokenise("<image>"))
        return [IGNORE] * n + labels[n:]
    separator = " ASSISTANT: " if template == "v1" else "[/INST] "
    at = 1
    labels[0] = IGNORE
    for piece in text.split("</s>"):
        if piece == "":
            break
        parts = piece.split(separator)
        if len(parts) != 2:
            break
        masked = len(tokenise(parts[0] + separator)) - 2
        labels[at:at + masked] = [IGNORE] * len(labels[at:at + masked])
        at += len(tokenise(piece))
    labels[at:] = [IGNORE] * len(labels[at:])
    return labels if at == sum(i != PAD for i in ids) else None


# ---- labels by the rule: where a token begins -------------------------------------------------------------------
def labels_rule(parts, image):
    text = "".join(t for t, _ in parts)
    answer = [a for t, a in parts for _ in t]  # per character
    ids, labels = [BOS], [IGNORE]
    cut = "(<unk>|<s>|</s>" + ("|<image>" if image else "") + ")"
    at = 0
    for chunk in re.split(cut, text):
        if chunk in SPECIAL or (image and chunk == "<image>"):
            ids.append(SPECIAL.get(chunk, MARKER))
            labels.append(ids[-1] if answer[at] and chunk != "<image>" else IGNORE)
        elif chunk:
            # character that byte b of "▁" + chunk (blanks as "▁") belongs to
            owner = [0] * 3
            for i, c in enumerate(chunk):
                owner += [i] * len(("\u2581" if c == " " else c).encode())
            byte = 0
            for i in model.encode(chunk):
                ids.append(i)
                labels.append(i if answer[at + owner[byte]] else IGNORE)
                byte += 1 if model.is_byte(i) else len(model.id_to_piece(i).encode())
            assert byte == len(owner), (chunk, byte, len(owner))
        at += len(chunk)
    return ids, labels


# ---- random conversations ---------------------------------------------------------------------------------------
WORDS = ("a the red bus What is shown in this picture? Two dogs, one cat. Yes No. 3.14 x=1; it's "
         "café naïve größer Straße Привет мир 猫 在这张图片中 日本語のテキスト 한국어 ไทย "
         "العربية 😀 👩‍👩‍👧 🇨🇦 𝒳 ① ﬁ é \u3000 \u00a0 \t [ ] [] ( ) {\"k\": [1, 2]} [INST] [x](y) "
         "[/IN T] <b> </b> <s <0x0A> \\n USER: ASSISTANT 12345 internationalisation aaaaaa").split(" ")
GLUE = [" "] * 14 + ["", "", "", "  ", "   ", "      ", "\n", "\n\n", " \n ", "\r\n"]
LITERAL = {"v1": [" ASSISTANT: ", " ASSISTANT:", "[/INST] "],
           "mistral_instruct": [" [/INST] ", "[/INST]", " [/INST]"],
           "llava_llama_2": [" [/INST] ", "[/INST]x", " [/INST]"], "plain": ["[/INST] "]}


def words(rng, most):
    text = rng.choice(["", "", "", "", "", " ", "  ", "\n"])
    for _ in range(rng.randint(1, most)):
        text += rng.choice(WORDS) + rng.choice(GLUE)
    return text if rng.random() < 0.25 else text.rstrip(" ")


def answer(rng, template, most):
    r = rng.random()
    if r < 0.06:
        return ""
    if r < 0.10:
        return words(rng, 2) + rng.choice(LITERAL[template]) + words(rng, 2) * (rng.random() < 0.7)
    if r < 0.11:
        return words(rng, 2) + "</s>" + words(rng, 2)
    return words(rng, most)


def conversation(rng, template):
    if template == "plain":
        return True, ["<image>", answer(rng, template, 8)]
    image = rng.random() < 0.6
    turns = []
    for _ in range(rng.randint(1, 3)):
        turns += [words(rng, 6) or "Q", answer(rng, template, 6)]
    if image:
        at = 2 * rng.randrange(len(turns) // 2) if rng.random() < 0.2 else 0
        marks = ["<image>\n" + turns[at], turns[at] + "\n<image>", "<image>" + turns[at],
                 turns[at] + "<image> " + turns[at], "<image>"]
        turns[at] = marks[rng.choice([0] * 6 + [1, 1, 2, 3, 4])]
    elif rng.random() < 0.05:
        turns[0] += " <image>"  # without an image: plain text
    return image, turns


# ---- the file ---------------------------------------------------------------------------------------------------
TABLE = []
for value in range(256):
    for _ in range(8):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    TABLE.append(value)


def crc32c(values):
    crc = 0xFFFFFFFF
    for b in struct.pack(f"<{len(values)}i", *values):
        crc = TABLE[(crc ^ b) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def row(rng):
    template = rng.choice(["v1", "mistral_instruct", "mistral_instruct", "llava_llama_2", "plain"])
    image, turns = conversation(rng, template)
    parts = prompt(template, [normalise(t) for t in turns] if image else turns)
    text = "".join(t for t, _ in parts)
    tokenise = image_tokens if image else tokens
    ids = tokenise(text)
    llava = labels_llava(template, text, ids, tokenise)
    rule_ids, rule = labels_rule(parts, image)
    assert rule_ids == ids, text
    assert llava is None or llava == rule, (text, llava, rule)
    return [template, int(image), turns, len(ids), crc32c(ids),
            None if llava is None else crc32c(llava), crc32c(rule)]


def main():
    rng = random.Random(20)
    rows = [row(rng) for _ in range(2000)]
    with open(os.path.join(HERE, "conversations.jsonl"), "w", encoding="utf-8") as f:
        for r in rows:
            f.write(json.dumps(r, ensure_ascii=False, separators=(",", ":")) + "\n")
    for template in LITERAL:
        mine = [r for r in rows if r[0] == template]
        print(f"{template}: {len(mine)} rows, {sum(r[5] is None for r in mine)} thrown away")


main()
