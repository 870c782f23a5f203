"""Kinds of what the files of a sweep hold, by their names: nothing else is read from them."""

from typing import Any

from raymu import row, shapes
from raymu.shapes import Fields, of

POINTS = Fields(dict.fromkeys(("x", "y"), list[float]), ("x", "y"))
MODELS = ("original", "retrained", "tuned")
MEMORY = Fields(
    {**dict.fromkeys(("original", "retrained", "error"), float), "interval": list[float]}, ("original", "retrained")
)
OF_SCENARIO = {
    "memory": of(dict, MEMORY) | None,
    "seen": Fields({"png": str, **dict.fromkeys(("mean", "std"), list[float])}, ("png", "mean", "std")),
}
BUDGET = Fields(dict.fromkeys(("seeds", "originals", "top"), int) | {"forget": list[list[int]]})
GROWN = Fields(
    {
        **dict.fromkeys(("time", "raymu"), str),
        **dict.fromkeys(("trials", "seeds", "originals", "top"), list[int]),
    },
    ("time", "raymu"),
)
PROTOCOL = Fields(
    {
        "trials": int,
        **dict.fromkeys(("max_epochs", "max_images", "max_hours"), float | None),
        **dict.fromkeys(("searcher", "scheduler", "objective", "suggestions", "decisions"), str),
        "search_seeds": list[int],
        "confirmation": BUDGET,
        "metrics": dict[str, str],
    }
)
SCENARIO = Fields(
    {
        **dict.fromkeys(("name", "dataset", "architecture", "forget_samples"), str),
        **dict.fromkeys(("forget", "classes"), list[int]),
        **dict.fromkeys(("forget_share", "train_share"), float),
        **dict.fromkeys(("recipe", "model_args"), dict[str, Any]),
    }
)
KINDS: dict[str, Any] = {
    "sweep.json": Fields(
        {
            "format": int,
            **dict.fromkeys(("raymu", "method", "head", "train", "forgotten", "subset"), str),
            **dict.fromkeys(("method_code", "evaluation_code", "objective_code"), str),
            "scenario": SCENARIO,
            "space": of(dict, Fields({"low": float, "high": float, "scale": str}, ("low", "high", "scale"))),
            "protocol": PROTOCOL,
            "history": of(list, GROWN),
        }
    ),
    "environment.json": Fields({"versions": dict[str, Any], "machine": str, "started": str}),
    "references.json": dict[str, dict[str, Any]],
    "features.json": Fields(
        {
            "trial_id": str,
            "confirms": str | None,
            **dict.fromkeys(("labels", "forget"), list[int]),
            **dict.fromkeys(MODELS, POINTS),
        },
        ("labels", "forget"),
    ),
    "ended.json": Fields({"rows": int, "budget": dict[str, int] | None}, ("rows",)),
}


def misfit(file: str, content: Any) -> str:
    """The first value of a file that is not of its kind, such as "protocol.trials is 'x'"; empty: all are.

    Args:
        file: its name.
    """
    said = shapes.misfit(content, KINDS.get(file, Any), file.partition(".")[0])
    if said or file != "references.json":
        return said
    found = (
        shapes.misfit(one, OF_SCENARIO[which], which) if which in OF_SCENARIO else row.misfit(one, which, ())
        for of_scenario in content.values()
        for which, one in of_scenario.items()
    )
    return next(filter(None, found), "")
