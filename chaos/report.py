"""What a chaos saw, as text and as JSON."""

from __future__ import annotations

import json
from collections import Counter

from chaos.course import Result
from chaos.judge import OK, excuse


def text(result: Result) -> str:
    """The report."""
    story = result.story
    lines = [
        f"seed {result.seed}: {story.made} calls in {result.seconds:.0f} s under {result.deeds.total()} deeds; "
        f"{result.polls} statuses, the longest time without one {result.away_s:.2f} s; "
        f"settled {result.settled_s:.1f} s after the last deed",
        "deeds: " + ", ".join(f"{kind} {count}" for kind, count in sorted(result.deeds.items())),
        "",
        f"{'kind of call':44}{'calls':>8}{'p50 ms':>9}{'p99 ms':>9}{'max':>8}  ended as",
    ]
    for kind in sorted({record.kind for record in story.records}):
        mine = [record for record in story.records if record.kind == kind]
        words = Counter(record.word for record in mine)
        times = sorted((record.ended - record.began) * 1000 for record in mine)
        p50, p99 = times[len(times) // 2], times[min(len(times) - 1, int(len(times) * 0.99))]
        ends = ", ".join(f"{word} {count}" for word, count in words.most_common())
        lines.append(f"{kind:44}{len(mine):>8}{p50:>9.1f}{p99:>9.1f}{times[-1]:>8.0f}  {ends}")
    excused = Counter(excuse(one, story.done).rpartition(" ")[0] for one in story.records if one.word != OK)
    lines += [
        "",
        "failed, by what explains it: " + (", ".join(f"{k or '?'} {n}" for k, n in excused.items()) or "none"),
    ]
    lines += ["ledger: " + ", ".join(f"{name} {count}" for name, count in result.ledger.items())]
    if why := result.link.get("skipped"):
        lines.append(f"no link is cut: {why}")
    elif result.link.get("calls"):
        ends = ", ".join(f"{word} {count}" for word, count in result.link["ended"].items())
        lines.append(f"link: {result.link['calls']} calls under {result.link['cuts']} cuts ended as: {ends}")
    lines += result.remarks
    lines += [f"FAULTS: {len(result.faults) or 'none'}", *(f"  - {one}" for one in result.faults)]
    return "\n".join(lines)


def as_json(result: Result) -> bytes:
    """Deeds, faults and every call that did not end well."""
    story = result.story
    begin = min((record.began for record in story.records), default=0.0)
    plain = {
        "seed": result.seed,
        "seconds": result.seconds,
        "calls": story.made,
        "deeds": dict(result.deeds),
        "polls": result.polls,
        "away_s": result.away_s,
        "settled_s": result.settled_s,
        "ledger": result.ledger,
        "link": result.link,
        "remarks": result.remarks,
        "faults": result.faults,
        "kinds": dict(Counter(record.kind for record in story.records)),
        "done": [
            {**vars(one), "began": round(one.began - begin, 3), "ended": round(one.ended - begin, 3)}
            for one in story.done
        ],
        "failed": [
            {**vars(one), "began": round(one.began - begin, 3), "ended": round(one.ended - begin, 3)}
            for one in story.records
            if one.word != OK
        ],
    }
    return json.dumps(plain).encode() + b"\n"
