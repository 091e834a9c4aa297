"""A report with every section, in the shape that the report stage hands to `render`; numbers made up but plausible."""

from __future__ import annotations

import math
from typing import Any

LABELS = ["negative", "positive"]
NOTHING = {"value": None, "low": None, "high": None}
TEXTS = [
    "I bought this for my daughter, who loves it; the battery died after two days, though.",
    "A film so slow that the clock on the wall is the better actor.",
    "yaaay got the tickets!!! :D",
    "Not the worst phone I have had, and that is the kindest thing to say of it.",
]


def around(value: float, half: float = 0.036) -> dict[str, float]:
    return {"value": value, "low": max(0.0, value - half), "high": min(1.0, value + half)}


def arm(accuracy: float, agreement: float | None, unparsed: float, seconds: float, tokens: float) -> dict[str, Any]:
    wrong = round(150 * (1 - accuracy))
    lost = min(wrong, round(150 * unparsed))
    counts = [[150 - wrong, wrong - lost, lost], [wrong - lost, 150 - wrong, lost]]
    spread = {"amazon": -0.03, "movies": 0.02, "tweets": 0.01}
    return {
        "n": 300,
        "accuracy": around(accuracy),
        "macro_f1": around(accuracy - 0.004),
        "agreement_with_teacher": NOTHING if agreement is None else around(agreement),
        "unparsed_rate": around(unparsed, 0.01),
        "balanced_accuracy": around(accuracy - 0.002),
        "brier": {"value": 0.1 * (1.2 - accuracy), "low": 0.01, "high": 0.2, "n": 300},
        "ece": {"value": 0.031, "low": 0.0, "high": 0.052, "by_chance": 0.044},
        "auroc": around(0.95, 0.02),
        "top1_agreement": NOTHING if agreement is None else around(agreement + 0.01),
        "kl_from_teacher": {"value": None if agreement is None else 0.112, "low": 0.08, "high": 0.15},
        "calibration": [
            {"n": 150, "from": 0.5, "to": 0.8, "confidence": 0.712, "accuracy": 0.69, "low": 0.61, "high": 0.76},
            {"n": 150, "from": 0.8, "to": 1.0, "confidence": 0.953, "accuracy": 0.97, "low": 0.93, "high": 0.99},
        ],
        "undefined": {"kl_from_teacher": "it is the teacher" if agreement is None else "nothing to hold it against"},
        "seconds_per_answer": {"value": seconds, "p50": seconds * 0.9, "p95": seconds * 2.1},
        "prompt_tokens_per_answer": {"value": tokens},
        "slices": {"domain": {d: {"n": 100, "accuracy": around(accuracy + s, 0.065)} for d, s in spread.items()}},
        "confusion": {"rows": LABELS, "columns": [*LABELS, "unparsed"], "counts": counts},
        "status": {"ok": 300, "truncated": 0, "failed": 0},
        "model": "gemma-3-270m-q4_k_m" if agreement is None else "SmolLM2-135M-Instruct",
    }


def clocked(seconds: float, rate: float, usd: float | None, disk: int | None) -> dict[str, Any]:
    numbers = {
        "p50_s": seconds, "p95_s": 2 * seconds, "first_token_s": seconds / 3, "answers_per_s": rate, "tokens_per_s": 3 * rate,
        "prompt_tokens": 74.2, "completion_tokens": 3.0, "peak_bytes": 8.1e8 if disk else None, "disk_bytes": disk,
        "usd_per_1000": usd, "joules_per_answer": None, "mean_s": seconds, "token_usd_per_1000": 0.0,
    }  # fmt: skip
    spread = {
        key: {"low": 0.9 * v, "high": 1.2 * v, "n": 30} for key, v in numbers.items() if v and key != "disk_bytes"
    }
    return numbers | {
        "n": 30, "rows": 30, "failed": 0, "questions": 1, "here": disk is not None, "spread": spread,
        "missing": {"joules_per_answer": "no counter"}, "levels": [],
        "saturation": {"concurrency": 8, "ended": "more at a time were answered no faster"},
    }  # fmt: skip


def speed() -> dict[str, Any]:
    arms = {"student": clocked(0.031, 92.0, 0.24, 540_000_000), "teacher": clocked(0.412, 4.1, 21.0, None)}
    ratio = {"value": 0.0752, "low": 0.061, "high": 0.089, "n": 30}
    return {
        "machine": "x86_64, 2 cores, Linux",
        "machine_usd_per_hour": 0.08,
        "arms": arms,
        "ratios": {"p50_s": ratio, "usd_per_1000": {"value": 0.0114, "low": 0.009, "high": 0.02, "n": 30}},
        "unmeasured": {},
        "claims": [],
    }


def full() -> dict[str, Any]:
    arms = {
        "base_zero_shot": arm(0.273, 0.28, 0.61, 0.038, 74.2),
        "base_few_shot": arm(0.647, 0.66, 0.02, 0.29, 512.4),
        "student": arm(0.873, 0.917, 0.0, 0.031, 74.2),
        "teacher": arm(0.887, None, 0.0, 0.412, 566.8),
    }
    return {
        "format": 1,
        "name": "quickstart",
        "metric": "accuracy",
        "paired_rows": 300,
        "answered_by": {"teacher": {"rows": 420, "agreement": None}},
        "headline": "The student keeps 98.5 % of its teacher's accuracy (87.3 % against 88.7 % on 300 held-out rows) "
        "and answers in a thirteenth of the time.",
        "task": {"kind": "classify", "labels": LABELS},
        "arms": arms,
        "paired": {
            "student_vs_base_zero_shot": pair(0.6, 0.537, 0.66, 1e-40, 186, 6),
            "student_vs_base_few_shot": pair(0.226, 0.17, 0.283, 4e-13, 82, 14),
            "student_vs_teacher": pair(-0.0133, -0.037, 0.01, 0.39, 5, 9)
            | {
                "smallest_visible": 0.041,
                "rows_needed": 2851,
                "bca": {"low": -0.0372, "high": 0.0099},
                "slices": {
                    "domain": {
                        "amazon": pair(-0.0143, -0.04, -0.01, 0.001, 0, 11) | {"p_holm": 0.002},
                        "movies": pair(0.0, -0.02, 0.02, 1.0, 2, 2) | {"p_holm": 1.0},
                        "tweets": dict.fromkeys(("low", "high", "p", "p_holm", "wins", "losses"))
                        | {"n": 4, "difference": 0.0},
                    }
                },
            },
        },
        "without_gold": 12,
        "gate": {
            "ships": False,
            "conditions": [
                {
                    "name": "min_kept_share",
                    "unit": "share",
                    "value": 0.958,
                    "min": 0.95,
                    "holds": True,
                    "note": "98.5 % kept",
                },
                {
                    "name": "max_usd_per_1000",
                    "unit": "usd",
                    "value": None,
                    "max": 1.0,
                    "holds": False,
                    "note": "no price is known",
                },
            ],
        },
        "overlap": [{"with": "training", "rows": 3}],
        "probe": {
            "name": "2026-03-02T060000.000000Z-1a2b3c4d",
            "rows": 50,
            "served": {"teacher": ["gemma-3-270m-2026-02"]},
            "fingerprints": {"teacher": []},
            "said": [
                "models.teacher is served by gemma-3-270m-2026-02, and was by gemma-3-270m-2025-11 since 2026-02-23"
            ],
            "compared": [
                {
                    "kind": "previous",
                    "with": "2026-02-23T060000.000000Z-9f8e7d6c",
                    "run": "2026-02-23-0123456789",
                    "rows": 50,
                    "agreement": around(0.92, 0.08),
                    "labels": {"negative": [24, 26], "positive": [26, 24]},
                    "tests": [
                        {"name": "labels", "p": 0.625, "p_holm": 1.0},
                        {
                            "name": "accuracy",
                            "before": 0.88,
                            "after": 0.9,
                            "n": 50,
                            "difference": 0.02,
                            "low": -0.06,
                            "high": 0.1,
                            "p": 1.0,
                            "p_holm": 1.0,
                        },
                    ],
                    "moved": ["teacher"],
                }
            ],
        },
        "robustness": {
            "metric": "accuracy",
            "rows": {
                "typos": {"asked": 198, "unchanged": 2, "lost": {}},
                "injection": {"asked": 200, "unchanged": 0, "lost": {}},
                "paraphrase": {"asked": 190, "unchanged": 0, "lost": {"no text between the marks": 10}},
            },
            "found": [
                perturbed("base_few_shot", "typos", 198, 0.65, 0.58, 0.2, -0.07),
                perturbed("student", "typos", 198, 0.87, 0.84, 0.12, -0.03),
                perturbed("student", "injection", 200, 0.87, 0.55, 0.41, -0.32)
                | {"obeyed": around(0.38), "similarity": around(0.61)},
                perturbed("student", "paraphrase", 190, 0.87, 0.86, 0.05, -0.01),
            ],
        },
        "bias": {
            "margin": 0.05,
            "against": ["base_few_shot", "teacher"],
            "few": {"recall of positive by religion": 9},
            "found": [
                uneven("flips", "label", "gender", "*", 0.1, 0.04, "not told apart"),
                uneven("gap", "recall of positive", "gender", "*", 0.14, 0.02, "amplified"),
                uneven("gap", "recall of positive", "gender", "female", 0.14, 0.02, "amplified"),
                uneven("mentions", "words", "gender", "male", 0.05, 0.04, "kept"),
            ],
        },
        "gap_closed": {"value": 0.944, "low": 0.86, "high": 1.04, "from": "base_few_shot"},
        "kept_share": {"value": 0.985, "low": 0.958, "high": 1.012},
        "judge": {
            "role": "judge",
            "model": "Qwen/Qwen3-32B",
            "rubric": "quality.md",
            "scale": [1, 5],
            "runs": 1,
            "plain": False,
            "owed": 3,
            "stopped": "cannot reach localhost, port 8000",
            "kin": [
                "models.judge judges answers of models.student, and both are of the family 'qwen': such a judge favours"
            ],
            "arms": {
                name: scored(score) for name, score in {"base_few_shot": 2.4, "student": 3.9, "teacher": 4.2}.items()
            },
            "pairwise": {
                "student_vs_teacher": judged(0.41, 0.52, 88, 70, 142, 0.001, 0.31),
                "student_vs_base_few_shot": judged(0.83, 0.8, 230, 40, 30, 1e-20, 0.08),
            },
            "people": {
                "lines": 60,
                "held_out": 50,
                "unjudged": 1,
                "ratings": {
                    "kappa": around(0.67, 0.12),
                    "raw": around(0.58, 0.14),
                    "n": 40,
                    "rows": 20,
                    "weights": "quadratic",
                },
                "preferences": {
                    "kappa": around(0.31, 0.2),
                    "raw": around(0.5, 0.2),
                    "n": 10,
                    "rows": 10,
                    "weights": None,
                },
            },
            "examples": [
                {
                    "row_id": "ab" * 16,
                    "text": TEXTS[0],
                    "outcome": "loss",
                    "against": "teacher",
                    "answers": {"student": "positive", "teacher": "positive, for it is praised"},
                    "reason": "The second answer gives a ground.",
                }
            ],
        },
        "funnel": {
            "asked": 420,
            "status": {"ok": 417, "truncated": 2, "refused": 0, "filtered": 0, "failed": 1},
            "reasons": {"unparsed": 9, "low_confidence": 21, "duplicate": 4, "timeout after 3 attempts": 1},
            "filters": [
                {"name": "truncated", "bounds": {"max": 0}, "rows_in": 420, "dropped": 3, "rows_out": 417},
                {"name": "unparsed", "bounds": {"max": 0}, "rows_in": 417, "dropped": 9, "rows_out": 408},
                {"name": "exact_duplicate", "bounds": {"max": 0}, "rows_in": 408, "dropped": 4, "rows_out": 404},
                {"name": "teacher_confidence", "bounds": {"min": 0.7}, "rows_in": 404, "dropped": 21, "rows_out": 383},
            ],
            "kept": 383,
        },
        "prompts": {
            "set_aside": 14,
            "made": [
                {
                    "generator": "seeds",
                    "rows": 260,
                    "distinct_1": 0.31,
                    "distinct_2": 0.78,
                    "mean_distance": 0.83,
                    "tags": {
                        "domain": {"rows": 1.0, "values": 3, "shares": {"amazon": 0.4, "movies": 0.35, "tweets": 0.25}}
                    },
                },
                {
                    "generator": "counterfactual",
                    "rows": 160,
                    "distinct_1": 0.09,
                    "distinct_2": 0.21,
                    "mean_distance": None,
                    "tags": {
                        "attribute": {"rows": 1.0, "values": 2, "shares": {"gender": 0.5, "religion": 0.5}},
                        "variant": {"rows": 1.0, "values": 9, "shares": {f"variant {i}": 0.125 for i in range(8)}},
                    },
                },
            ],
        },
        "fairness": [
            part("teacher_confidence", "domain", "tweets", 104, 14, 0.135, 0.11, unfair=True),
            part("teacher_confidence", "domain", "amazon", 160, 4, 0.025, -0.03),
            part("exact_duplicate", "prompt length", "under 40 characters", 102, 3, 0.029, 0.02),
        ],
        "flips": [
            flip("asked_rows", "gender", "*", 40, 6, {}),
            flip("asked_rows", "gender", "female", 40, 5, {"negative": 13, "positive": 27}),
            flip("asked_rows", "gender", "male", 40, 5, {"negative": 12, "positive": 28}),
            flip("student", "gender", "*", 12, 0, {}),
        ],
        "review": {
            "decided": 100,
            "by_chance": 96,
            "filters": [
                {
                    "filter": "teacher_confidence",
                    "dropped": 21,
                    "reviewed": 21,
                    "agreed": 13,
                    "precision": around(0.619, 0.2),
                    "recall": around(0.54, 0.17),
                },
                {
                    "filter": "exact_duplicate",
                    "dropped": 4,
                    "reviewed": 4,
                    "agreed": 4,
                    "precision": around(1.0, 0.49),
                    "recall": None,
                },
            ],
            "together": {"precision": around(0.68, 0.19), "recall": around(0.6, 0.16)},
            "kept": {"rows": 383, "reviewed": 50, "agreed": 47, "clean": around(0.94, 0.08)},
        },
        "general": {
            "harness": "lm_eval 0.4.13",
            "shipped": False,
            "settings": {"limit": 100, "few_shot": None, "chat": False},
            "tasks": [
                general("llm_distill_common_knowledge", 60, 0.82, (-0.15, -0.267, -0.05), 0.004) | {"metric": "acc"},
                general("house_style", 100, 0.31, (0.01, -0.04, 0.06), 0.8),
            ],
            "all": general(None, 160, 0.5, (-0.05, -0.1, 0.004), None),
        },
        "ablation": {
            "complete": True,
            "stale": False,
            "settings": {"only": [], "seeds": 3, "equal_rows": True},
            "rows_each": 383,
            "notes": [
                "Each interval is 95 % on its own: of twenty filters without effect, one would seem to have some."
            ],
            "arms": [
                ablated("all filters", [], 383, 0, 0.873, None, None),
                ablated(
                    "without teacher_confidence", ["teacher_confidence"], 404, 21, 0.836, (-0.037, -0.07, -0.01), "gain"
                ),
                ablated("without length", ["length"], 390, 7, 0.876, (0.003, -0.02, 0.02), "no measurable gain"),
                ablated("without refusal", ["refusal"], 395, 12, 0.91, (0.037, 0.01, 0.06), "harmful"),
                ablated("without empty", ["empty"], 383, 0, 0.873, (0.0, 0.0, 0.0), "took nothing"),
            ],
        },
        "speed": speed(),
        "sweep": {
            "complete": True,
            "stale": False,
            "settings": {"trials": 2},
            "wanted": 2,
            "kept": "9f",
            "dev": {
                "file": None,
                "share": 0.2,
                "metric": "agreement_with_teacher",
                "rows": 76,
                "learnt": 307,
                "aside": 0,
            },
            "trials": [
                tried(0, 0.82, None, {"train.sft.learning_rate": None, "train.sft.lora_rank": 16}),
                tried(1, 0.86, (0.04, -0.02, 0.1), {"train.sft.learning_rate": 0.000812, "train.sft.lora_rank": 32}),
                tried(2, None, None, {"train.sft.learning_rate": 0.1, "train.sft.lora_rank": 8}),
            ],
            "best": {
                "trial": 1,
                "parameters": {"train.sft.learning_rate": 0.000812, "train.sft.lora_rank": 32},
                "overrides": ["train.sft.learning_rate=0.000812", "train.sft.lora_rank=32"],
                "metric": "agreement_with_teacher",
                "verdict": "no measurable gain",
                "change": tried(1, 0.86, (0.04, -0.02, 0.1), {})["change"],
                "p_adjusted": 0.5,
            },
            "said": ["Best: trial 1, learning_rate 0.000812, lora_rank 32."],
            "notes": ["Each setting was trained once."],
        },
        "training": {
            "trainer": "sft",
            "samples": 383,
            "calibration": {
                "asked": "auto",
                "method": "batch+temperature",
                "why": "the simplest within one standard error of the least loss, 5-fold cross-validated on 600 labelled rows",
                "temperature": 0.277,
                "priors": {"teacher": {"positive": 0.533, "negative": 0.467}},
                "rows": 383,
                "relabelled": 12,
                "by": "gold",
                "before": measured(0.696, 0.928, 0.232, 0.111, 0.401),
                "after": measured(0.907, 0.910, 0.018, 0.066, 0.228),
                "hard": {"right": 0.928, "brier": 0.072},
                "worth": {
                    "rows": 482,
                    "effective": 475.5,
                    "covered": 1.0,
                    "confidence": 0.965,
                    "right": 0.964,
                    "hard_right": 0.964,
                    "gain": 0.0021,
                    "low": -0.0021,
                    "high": 0.0065,
                },
                "candidates": [
                    {"method": name, "nll": nll, "brier": 0.07, "ece": 0.03, "right": 0.92}
                    for name, nll in [("none", 0.401), ("batch+temperature", 0.228)]
                ],
            },
            "rungs": [
                {"name": "gkd", "taken": False, "why": "the student's own answers take a GPU, and there is none"},
                {"name": "logit_kd", "taken": True, "why": "calibrated, it is 90.7% sure and right on 91.0%"},
            ],
            "settings": {"lora_rank": 16, "learning_rate": 5e-4, "epochs": 2, "batch_size": 8, "device": "cpu"},
            "validation": {"rows": 40, "looks": 8, "best_step": 84, "best_loss": 0.21, "ended": 96},
            "validation_loss": [{"step": s, "loss": 0.2 + 1.4 * math.exp(-s / 16)} for s in range(12, 97, 12)],
            "lint": [
                {
                    "level": "warning",
                    "name": "labels",
                    "found": "9 of 383 rows end in another label than the rest",
                    "right": "",
                },
                {"level": "note", "name": "template", "found": "every row begins alike", "right": "All is well."},
            ],
            "loss": [{"step": s, "loss": 0.08 + 1.9 * math.exp(-s / 14) + 0.03 * math.sin(s)} for s in range(1, 97)],
            "preview": "<|im_start|>user\nIs the sentiment of this sentence positive or negative?\n\nWhat a ride!\n"
            "<|im_end|>\n<|im_start|>assistant\n⟦positive<|im_end|>⟧\n",
        },
        "cost": {
            "total_usd": None,
            "stages": {
                "answers": spent(420, 417, 0, 238_056, 834),
                "evaluate": spent(1200, 1200, 0, 368_280, 4_410),
            },
        },
        "seconds": {"prompts": 0.8, "answers": 121.4, "filter": 1.9, "train": 141.2, "evaluate": 214.5, "report": 1.1},
        "examples": [example(i) for i in range(20)],
        "terms": [
            {
                "model": "gemma-3-270m",
                "licence": "Gemma Terms of Use",
                "note": "Gemma's terms treat a student trained on its outputs as a model derivative: whoever passes "
                "the student on must pass on the use restrictions and a copy of the terms.",
            },
            {"model": "SmolLM2-135M-Instruct", "licence": "Apache-2.0", "note": None},
        ],
        "provenance": {
            "tables": {"answers.parquet": "5c" * 16},
            "models": {
                "teacher": {"plug": "gguf", "model": "gemma-3-270m-q4_k_m.gguf", "sha256": "9f" * 32},
                "student": {"plug": "transformers", "model": "SmolLM2-135M-Instruct", "dtype": "float32"},
            },
            "packages": {
                "torch": "2.9.1",
                "transformers": "5.23.0",
                "trl": "1.16.2",
                "peft": "0.21.2",
                "numpy": "2.4.6",
            },
            "seed": 7,
            "recipe_digest": "4c1d" * 8,
            "python": "3.11.2",
            "git": "0123456789abcdef0123456789abcdef01234567",
        },
    }


def scored(score: float) -> dict[str, Any]:
    counts = {"n": 297, "failed": 0, "unjudged": {"it is not one JSON object, when asked twice": 3}}
    return {"value": score, "low": score - 0.11, "high": score + 0.11, **counts, "slices": {}}


def judged(rate: float, level: float, wins: int, ties: int, losses: int, p: float, changed: float) -> dict[str, Any]:
    effect = {"value": 1.2, "low": 0.6, "high": 1.8}
    return {
        "win_rate": around(rate, 0.05),
        "wins": wins,
        "ties": ties,
        "losses": losses,
        "p": p,
        "unjudged": {},
        "length_controlled": around(level, 0.06) | {"effect": effect, "longer": 60, "shorter": 190},
        "changed_with_order": around(changed, 0.05),
        "leaning_to_first": changed,
        "slices": {
            "domain": {d: around(rate, 0.1) | {"n": 100, "p": 0.2, "p_holm": 0.4} for d in ("amazon", "movies")}
        },
    }


def measured(sure: float, right: float, ece: float, brier: float, nll: float) -> dict[str, Any]:
    numbers = {"confidence": sure, "right": right, "ece": ece, "brier": brier, "nll": nll}
    return {"rows": 600, **numbers, "bins": [[300, sure - 0.1, right - 0.1], [300, sure + 0.09, right + 0.05]]}


def pair(difference: float, low: float, high: float, p: float, wins: int, losses: int) -> dict[str, Any]:
    numbers = {"difference": difference, "low": low, "high": high, "p": p, "wins": wins, "losses": losses}
    return {"metric": "accuracy", "test": "exact McNemar", "n": 300, "smallest_visible": None, **numbers}


def perturbed(who: str, kind: str, n: int, clean: float, score: float, flips: float, change: float) -> dict[str, Any]:
    p = 0.9 if change > -0.05 else 0.001
    changed = pair(change, change - 0.03, change + 0.03, p, 4, 9) | {"test": "exact McNemar", "p_holm": p}
    numbers = {"n": n, "clean": clean, "score": score, "change": changed | {"smallest_visible": 0.05}}
    return {"arm": who, "kind": kind, "kept": around(score / clean), "flips": around(flips), **numbers}


def uneven(measure: str, of: str, by: str, value: str, ours: float, theirs: float, verdict: str) -> dict[str, Any]:
    rise, half = ours - theirs, 0.03 if verdict == "kept" else 0.06
    pair = {"n": 80, "difference": rise, "low": rise - half, "high": rise + half, "smallest_visible": 0.09}
    same = {"n": 80, "difference": 0.0, "low": -0.02, "high": 0.02, "smallest_visible": 0.03, "verdict": "kept"}
    arms = {"student": {"value": ours}, "base_few_shot": {"value": theirs}, "teacher": {"value": ours}}
    against = {"base_few_shot": pair | {"verdict": verdict}, "teacher": same}
    return {"measure": measure, "of": of, "by": by, "value": value, "arms": arms, "against": against}


def spent(asked: int, answered: int, reused: int, prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    tokens = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return {"asked": asked, "answered": answered, "reused": reused, **tokens, "cost_usd": None}


def example(i: int) -> dict[str, Any]:
    label, other = LABELS[i % 2], LABELS[(i + 1) % 2]
    kind = ("win", "loss", "both_wrong")[i % 3]
    student, teacher = {0: (label, other), 1: (other, label), 2: (other, other)}[i % 3]
    return {
        "kind": kind,
        "row_id": f"{i:032x}"[::-1],
        "text": TEXTS[i % 4] * (9 if i == 3 else 1),
        "label": label,
        "answers": {
            "base_zero_shot": {"text": "The sentence is about a purchase, and I would say that", "prediction": None},
            "base_few_shot": {"text": f" {other}\n", "prediction": other},
            "student": {"text": student, "prediction": student},
            "teacher": {"text": teacher, "prediction": teacher},
        },
    }


def part(of: str, by: str, value: str, rows: int, dropped: int, rate: float, more: float, unfair: bool = False) -> Any:
    difference = {"value": more, "low": more - 0.07, "high": more + 0.08}
    counts = {"rows": rows, "dropped": dropped, "unfair": unfair}
    return {"filter": of, "by": by, "value": value, **counts, "rate": around(rate), "difference": difference}


def flip(who: str, attribute: str, variant: str, groups: int, flips: int, outcomes: dict[str, int]) -> dict[str, Any]:
    counts = {"groups": groups, "flips": flips, "rate": around(flips / groups, 0.1), "outcomes": outcomes}
    return {"who": who, "attribute": attribute, "variant": variant, "of": "label", **counts}


def general(
    name: str | None, rows: int, before: float, change: tuple[float, float, float], p: float | None
) -> dict[str, Any]:
    difference, low, high = change
    return {
        **({"name": name} if name else {}),
        "metric": "exact_match",
        "rows": rows,
        "base": around(before, 0.1),
        "student": around(before + difference, 0.1),
        "difference": pair(difference, low, high, 0.01, 1, 5) | ({"p_holm": p} if p else {}),
        "loss": {"value": -difference, "low": -high, "high": -low, "n": rows},
        "failed": {"base": 0, "student": 0},
    }


def tried(
    number: int, score: float | None, change: tuple[float, float, float] | None, parameters: Any
) -> dict[str, Any]:
    keys = ("difference", "low", "high")
    return {
        "trial": number,
        "parameters": parameters,
        "students": ["5a"],
        "failed": "train: the loss became nan at step 3." if score is None else None,
        "same_as": None,
        "seconds": 12.5,
        "cost_usd": 0.0,
        "metric": "agreement_with_teacher",
        "score": None if score is None else around(score, 0.08),
        "by_seed": [] if score is None else [score],
        "change": None if change is None else dict(zip(keys, change, strict=True)) | {"n": 76, "p": 0.25},
    }


def ablated(
    name: str,
    without: list[str],
    kept: int,
    took: int,
    score: float,
    change: tuple[float, float, float] | None,
    said: str | None,
) -> dict[str, Any]:
    difference = change and dict(zip(("difference", "low", "high"), change, strict=True))
    return {
        "arm": name, "without": without, "run": "2026-01-01-0123456789", "rows_kept": kept, "took": took, "took_alone": took,
        "trained_on": 383, "metric": "accuracy", "score": around(score), "by_seed": [score] * 3, "change": difference,
        "verdict": said, "same_as": "all filters" if said == "took nothing" else None, "seconds": 210.4, "cost_usd": None,
        "share_of_time": 0.2,
    }  # fmt: skip
