"""Make `tutor/papers.json` from `book/references.bib`: what the course covers, in one list.

Run it after a change of the bibliography:

    python book/make_papers.py            # writes tutor/papers.json
    python book/make_papers.py --check    # fails when the file is out of date

Each paper gets a family, its place in the coverage matrix, and says whether a method is to be built from it. Background
papers (a library, a data set, the model's own paper, a second paper on a method that another entry already stands for)
are in the bibliography but not in the matrix.
"""

from __future__ import annotations

import argparse
import codecs
import json
import re
import sys
from pathlib import Path

import latexcodec  # noqa: F401  (registers the codec "ulatex")
from pybtex.database import BibliographyData, parse_string

HERE = Path(__file__).resolve().parent
BIB = HERE / "references.bib"
OUT = HERE.parent / "tutor" / "papers.json"

# The heading of each section of the bibliography and the family that its entries belong to, unless named below.
SECTIONS = {
    "Part A. Source list: attention": "attention",
    "Part A. Source list: KV cache and model compression": "compress",
    "Part A. Source list: speculative decoding and inference-time compute": "speculative",
    "Part A. Source list: nearest-neighbour search and retrieval": "retrieval",
    "Part A. Source list: graphs, algorithms and other topics": "extras",
    "Part B. Baselines: exact and sparse attention, position encoding": "attention",
    "Part B. Baselines: KV cache policies and serving": "kvcache",
    "Part B. Baselines: speculative decoding and inference-time compute": "speculative",
    "Part B. Baselines: nearest-neighbour search": "ann",
    "Part B. Baselines: text retrieval and string indexes": "retrieval",
    "Part B. Baselines: recurrent networks, number formats, small models": "compress",
}

FAMILY = {
    key: family
    for family, keys in {
        "kvcache": "li2024ems xu2024think he2025a2ats li2024scbench horton2024kvprediction",
        "compute": "liu2025bag snell2024scaling wang2025plansearch yue2025inference martinez2024hyperparameters "
        "wang2023selfconsistency yao2023tree",
        "ann": "chen2021spann oakley2025squash gan2023binary dhulipala2024muvera zhan2021jpq zhan2022repconc "
        "yadav2022anncur",
        "extras": "raj2024enterprise han2024peft ma2022scattered zeng2024fdp",
        "attention": "hochreiter1997lstm cho2014gru beck2024xlstm",
        "retrieval": "wang2020minilm",
    }.items()
    for key in keys.split()
}

# Read, cited, but not a method of the course: why.
BACKGROUND = {
    "dong2024flexattention": "a peer in benchmarks",
    "su2021roformer": "part of the model",
    "ainslie2023gqa": "part of the model",
    "dao2024flashattention2": "the same sum as dao2022flashattention, other work partition",
    "li2024iobackward": "a follow-up of saha2024io, whose abstract alone was read",
    "sobczyk2026io": "a follow-up of saha2024io, whose abstract alone was read",
    "kitaev2020reformer": "forerunner of han2024hyperattention",
    "choromanski2020performer": "the feature map inside luo2021kernelized",
    "fu2023lookahead": "first publication of fu2024lookahead",
    "chen2023sampling": "the same rule as leviathan2023speculative",
    "xia2024specbench": "survey and benchmark",
    "douze2024faiss": "a peer in benchmarks",
    "aumuller2020annbenchmarks": "benchmark protocol",
    "khattab2020colbert": "the score inside dhulipala2024muvera",
    "formal2021splade": "forerunner of geng2024inferencefree",
    "ferragina2000fmindex": "the index inside bevilacqua2022seal",
    "hochreiter1997lstm": "a cell inside poppel2024flashrnn",
    "cho2014gru": "a cell inside poppel2024flashrnn",
    "beck2024xlstm": "a cell inside poppel2024flashrnn",
    "ocp2023mx": "the standard that follows rouhani2023mx",
    "allal2025smollm2": "the model of the course",
    "wang2020minilm": "the encoder of the course",
}

ORDER = ("attention", "kvcache", "compress", "speculative", "compute", "ann", "retrieval", "extras")


def plain(latex: str) -> str:
    """A title without LaTeX: `{A$^2$ATS}: ...` -> `A²ATS: ...`.

    >>> plain("{FlashAttention}: Fast and {IO}-Aware")
    'FlashAttention: Fast and IO-Aware'
    """
    text = latex.replace("$^2$", "²")
    text = codecs.decode(text, "ulatex")
    text = re.sub(r"[{}]", "", text).replace("--", "–")
    return re.sub(r"\s+", " ", text).strip()


def address(fields: dict[str, str]) -> str:
    """Where the paper is, from an identifier that was seen in a source; "" where it was not."""
    if "unverified" in fields.get("note", "") or "eprint" in fields.get("unverified", ""):
        return fields.get("url", "") if "unverified" not in fields.get("note", "") else ""
    if fields.get("archiveprefix") == "arXiv":
        return f"https://arxiv.org/abs/{fields['eprint']}"
    return f"https://doi.org/{fields['doi']}" if "doi" in fields else fields.get("url", "")


def sections(text: str) -> dict[str, str]:
    """Entry key -> heading of the section of the file that it stands in."""
    found, heading = {}, ""
    for line in text.splitlines():
        if match := re.match(r"% (Part [A-Z]\. .*)", line):
            heading = match[1].strip()
        elif match := re.match(r"@\w+\{([^,]+),", line):
            found[match[1]] = heading
    return found


def papers(text: str) -> list[dict]:
    """Every paper of the bibliography, in order of family and of the file.

    Raises:
        ValueError: an entry stands under a heading that `SECTIONS` lacks, or a table above names an unknown key.
    """
    data: BibliographyData = parse_string(text, "bibtex")
    place = sections(text)
    unknown = sorted(({*FAMILY} | {*BACKGROUND}) - {*place})
    if unknown:
        raise ValueError(f"make_papers.py names {unknown}, which references.bib lacks; correct FAMILY or BACKGROUND")
    rows = []
    for key, entry in data.entries.items():
        if place[key] not in SECTIONS:
            raise ValueError(f"{key} stands under the heading {place[key]!r}; add it to SECTIONS in make_papers.py")
        rows.append(
            {
                "key": key,
                "title": plain(entry.fields["title"]),
                "year": int(entry.fields["year"]),
                "family": FAMILY.get(key, SECTIONS[place[key]]),
                "url": address(entry.fields),
                "planned": key not in BACKGROUND,
                "why_not": BACKGROUND.get(key, ""),
                "source": "list" if place[key].startswith("Part A") else "baseline",
            }
        )
    return sorted(rows, key=lambda row: ORDER.index(row["family"]))


def dump(rows: list[dict]) -> str:
    lines = ",\n".join(" " + json.dumps(row, ensure_ascii=False) for row in rows)
    return f"[\n{lines}\n]\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the file instead of writing it")
    check = parser.parse_args().check
    text = dump(papers(BIB.read_text(encoding="utf-8")))
    if check:
        same = OUT.exists() and OUT.read_text(encoding="utf-8") == text
        print(
            "tutor/papers.json is up to date" if same else "tutor/papers.json is out of date: run book/make_papers.py"
        )
        return 0 if same else 1
    OUT.write_text(text, encoding="utf-8")
    planned = text.count('"planned": true')
    print(f"{OUT.name}: {len(json.loads(text))} papers, {planned} planned as methods")
    return 0


if __name__ == "__main__":
    sys.exit(main())
