"""What a ranking says in words: who wins, by how much, how far that is to be trusted, and what to do next."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from scipy.special import ndtri

from raymu.objective import score_name
from raymu.results import tables
from raymu.results.comparison import FEWEST, LEVEL, Estimate, estimate
from raymu.results.cost import expects_nothing
from raymu.results.groups import said_of_part
from raymu.results.identity import forgotten, subset
from raymu.results.ranking import Ranked
from raymu.results.reader import SweepResults, of_search
from raymu.results.tables import fixed, interval
from raymu.row import values

ENOUGH_ORIGINALS = 5
MANY = 4  # names are a number in the headline
HALF = float(ndtri(1 - LEVEL / 2))  # standard errors of a half interval


def headline(ranked: Sequence[Ranked]) -> str:
    """Who won, or that nobody did, in one sentence."""
    if not ranked:
        return "No trial completed, so there is nothing to rank."
    first, objective = ranked[0], score_name(ranked[0].tuned["objective"])
    score = f"{objective} {fixed(first.score.mean)}"
    if not _is_won(ranked):
        return f"Nobody won: no tuned setting has {objective} above 0 on test."
    if not _is_clear([entry.sweep for entry in ranked]):
        return f"No verdict: memory is within noise, so scores tell nothing. Highest: {first.sweep.name} ({score})."
    if not first.score.runs:
        return f"Highest on test: {first.sweep.name} ({score}), by a single run, so no place is certain."
    if first.score.low is not None:
        score += f", interval {interval(first.score, fixed)}"
    if len(ranked) == 1:
        return f"{first.sweep.name}: {score}."
    rivals = [entry.sweep.name for entry in ranked[1:] if not entry.behind.significant]
    if rivals:
        equal = [entry.sweep.name for entry in ranked if entry.rank == 1]
        if others := [name for name in rivals if name not in equal]:
            return f"Highest mean: {some(equal, 'sweeps')} ({score}). Nothing tells it from {some(others, 'others')}."
        return f"Highest mean: {some(equal, 'sweeps')} ({score})."
    return f"{first.sweep.name} is first ({score}), {_ahead(ranked[1])}."


def title(sweeps: Sequence[SweepResults]) -> str:
    """What is unlearned, in words."""
    identities = [sweep.identity for sweep in sweeps]
    scenarios = [identity.get("scenario", {}) for identity in identities]
    return listed(
        f"Unlearning {forgotten(identity)} of {one.get('dataset')}{subset(identity)} by {one.get('architecture')}"
        f" ({one.get('name')})"
        for identity, one in zip(identities, scenarios, strict=True)
    )


def verdict(sweeps: Sequence[SweepResults], ranked: Sequence[Ranked]) -> dict[str, str]:
    """Who wins, by how much, how far that is to be trusted, and what to do next, in words."""
    budgets = [sweep.identity.get("protocol", {}) for sweep in sweeps]
    certain = len(ranked) > 1 and _is_clear(sweeps) and all(entry.behind.significant for entry in ranked[1:])
    said = {
        "Winner" if certain else "Highest": _first(ranked) if _is_won(ranked) else "",
        "Lead": _lead(ranked) if _is_won(ranked) else "",
        "Scale": tables.SCALES.get(score_name(ranked[0].tuned["objective"]), "") if ranked else "",
        "Memory to remove": _memory(sweeps),
        "Measured on": measured_on(ranked),
        "Budget": listed(
            f"trials a search: {b.get('trials')} at most, searcher {b.get('searcher')}, scheduler {b.get('scheduler')},"
            f" objective {b.get('objective')}"
            for b in budgets
        ),
        "Next": _next(sweeps, ranked),
    }
    return {term: value for term, value in said.items() if value}


def _is_won(ranked: Sequence[Ranked]) -> bool:
    """Whether any score is above 0."""
    return bool(ranked) and ranked[0].score.mean > 0


def _first(ranked: Sequence[Ranked]) -> str:
    first = ranked[0]
    published = first.figures["published"]
    before = f"; its published setting: {fixed(published.score.mean)}" if published else ""
    return f"{first.sweep.name} with {tables.setting(first.tuned['config'])}{before}"


def _lead(ranked: Sequence[Ranked]) -> str:
    rivals = [entry.sweep.name for entry in ranked[1:] if not entry.behind.significant]
    if len(ranked) < 2:
        return ""
    if not ranked[0].score.runs or ranked[0].score.originals < FEWEST:
        return f"not known: that takes a confirmation on {FEWEST} originals or more"
    among = f"not separable from {len(rivals)} of {len(ranked) - 1} others" if rivals else "separable from all others"
    return f"{_ahead(ranked[1])}; {among}"


def _ahead(entry: Ranked) -> str:
    """How far the first is ahead, with an interval if there is one."""
    return f"{fixed(entry.behind.mean)} {interval(entry.behind, fixed)}".strip() + f" ahead of {entry.sweep.name}"


def _memory(sweeps: Sequence[SweepResults]) -> str:
    """What there is to remove on test, with its interval over images, and over originals where there are several."""
    found = _memories(sweeps)
    if not found:
        return ""
    first = next(iter(found.values()))  # that was searched on
    difference, half = first["original"] - first["retrained"], HALF * first["error"]
    said = (
        f"the attacker's AUC is {first['original']:.4f} on the original, {first['retrained']:.4f} on the retrained"
        f" model: {difference:.4f} [{difference - half:.4f}, {difference + half:.4f}]"
    )
    if difference > half:
        said += f", so the scale from 0 to 1 is known to ± {100 * half / difference:.0f} %"
    over = _over_originals(found)
    if over.low is not None:
        said += f"; over {over.originals} originals {over.mean:.4f} [{over.low:.4f}, {over.high:.4f}]"
    return said


def _over_originals(found: Mapping[int, Mapping[str, float]]) -> Estimate:
    return estimate({(seed, "", 0): one["original"] - one["retrained"] for seed, one in found.items()}, (-1, 1))


def _is_clear(sweeps: Sequence[SweepResults]) -> bool:
    """Whether there is memory beyond noise on test, on every original or over all; True where it is not known."""
    found = _memories(sweeps)
    if all(one["original"] - one["retrained"] > HALF * one["error"] for one in found.values()):
        return True
    over = _over_originals(found)
    return over.low is not None and over.low > 0


def _memories(sweeps: Sequence[SweepResults]) -> dict[int, Mapping[str, float]]:
    """Memory on test by original, the one that was searched on first, as far as it is known."""
    found: dict[int, Mapping[str, float]] = {}
    for sweep in sweeps:
        for scenario, seed in values(sweep.rows, ("scenario_hash", "model_seed")):
            memory = sweep.references.get(scenario, {}).get("memory") or {}
            if memory.get("test"):
                found.setdefault(seed or 0, memory["test"])
    return found


def measured_on(ranked: Sequence[Ranked]) -> str:
    """Numbers of images, runs and originals, in words."""
    images = {entry.figures["tuned"].images for entry in ranked if entry.figures["tuned"]}
    counted = [f"{retain:,} retain and {forget:,} forget images of test" for retain, forget in filter(None, images)]
    runs = [tables.runs_in_words(entry.score) if entry.score.runs else "single runs" for entry in ranked]
    return ", ".join(filter(None, [listed(counted) if counted else "", listed(runs) if runs else ""]))


def _next(sweeps: Sequence[SweepResults], ranked: Sequence[Ranked]) -> str:
    if not ranked:
        return "look at the errors: raymu results"
    if not _is_clear(sweeps):
        return "forget other or more classes, or train longer: with so little to remove no place says anything"
    if not _is_won(ranked):
        return "search longer (--trials) or wider (--range): no setting removed memory and kept the model"
    if min(entry.score.originals for entry in ranked) < FEWEST:
        return "confirm on several originals, or no place is certain: --confirm-originals 5 --confirm-seeds 2"
    rivals = [entry for entry in ranked[1:] if not entry.behind.significant]
    keep = f"keep the model of {ranked[0].sweep.name}: raymu export with its directory"
    return f"more originals (--confirm-originals) tell more methods apart; {keep}" if rivals else keep


def cautions(sweeps: Sequence[SweepResults], ranked: Sequence[Ranked]) -> Iterator[str]:
    """What a reader has to know before the ranking."""
    yield from (f"{sweep.name}: {sweep.missing}." for sweep in sweeps if sweep.missing)
    if said := said_of_part(sweeps):
        yield f"{said[0].upper()}{said[1:]}."
    for sweep in sweeps:
        protocol = sweep.identity.get("protocol", {})
        patience = protocol.get("patience")
        searches = [of_search(seed, sweep.rows) for seed in protocol["search_seeds"]] if patience else []
        if ended := [str(len(rows)) for rows in searches if expects_nothing(rows, patience)]:
            yield (
                f"{sweep.name}: its search{'es' * (len(ended) > 1)} ended after {listed(ended)} trials, as the last"
                f" {patience} were expected to improve on the best score by less than its noise (--trials auto)."
            )
    images, hours = (
        {one for sweep in sweeps if (one := sweep.identity.get("protocol", {}).get(bound))}
        for bound in ("max_images", "max_hours")
    )
    if images:
        yield f"A search began no trial once it had read {listed(f'{one:,}' for one in images)} images (--max-images)."
    if hours:
        yield (
            f"A search had {listed(f'{one:g}' for one in hours)} hours of wall time (--max-hours): how many settings it"
            " tried depends on the machine."
        )
    ideal = ranked[0].figures["retrained"] if ranked else None
    if ideal is not None and ranked[0].score.mean > ideal.score.mean:
        yield (
            f"{ranked[0].sweep.name} scores above the retrained model ({fixed(ideal.score.mean)}), which is the ideal:"
            f" {score_name(ranked[0].tuned['objective'])} pays for damage, removal does not."
        )
    if ranked and tables.lacks_retrained(ranked[0].figures):
        yield f"There is {tables.NO_RETRAINED}."
    memories = _memories(sweeps).values()
    if ranked and (without := sum(one["original"] <= one["retrained"] for one in memories)):
        yield (
            f"On {without} of {len(memories)} originals the attacker reads the original no better than the retrained"
            " model: there is nothing to remove, and removal is 0 for every model."
        )
    for name, failed, diverged, runs in _ended_badly(ranked):
        if failed:
            yield f"{name}: {failed} of its runs failed, so all are ranked by the runs that all have ({runs})."
        if diverged:
            yield f"{name}: {diverged} of its {runs} runs diverged: they score 0, other columns are of the rest."
    single = [entry.sweep.name for entry in ranked if not entry.score.runs]
    if single:
        who = "Nothing was" if len(single) == len(ranked) else f"{', '.join(single)}: not"
        yield f"{who} confirmed: these are single runs, each chosen among many for its score, without an interval."
    few = [entry for entry in ranked if 0 < entry.score.originals < ENOUGH_ORIGINALS]
    if few:
        yield (
            f"Fewer than {ENOUGH_ORIGINALS} independently trained originals: an interval over so few says little, since"
            f" most of the variance is between originals; below {FEWEST} no difference is told from none."
        )
    fallback = [entry.sweep.name for entry in ranked if entry.published is not None and entry.published.get("fallback")]
    if fallback:
        who = "" if len(fallback) == len(ranked) else f" ({', '.join(fallback)})"
        yield f"“Published” is a fallback{who}: nothing is for this dataset, architecture, batch size and head."
    named = [
        f"{entry.sweep.name} {entry.published['published']}"
        for entry in ranked
        if entry.published is not None and entry.published.get("published")
    ]
    if named:
        yield f"“Published” is what the authors' code says, or else the paper's table: {', '.join(named)}."


def _ended_badly(ranked: Sequence[Ranked]) -> Iterator[tuple[str, int, int, int]]:
    """Names of sweeps, how many runs of their tuned setting failed and how many diverged, and how many are ranked."""
    for entry in ranked:
        ended = [row["status"] for row in entry.sweep.rows if row.get("confirms") == entry.tuned["trial_id"]]
        yield entry.sweep.name, ended.count("error"), ended.count("diverged"), entry.score.runs


def some(names: Sequence[str], many: str) -> str:
    """Names in a line, or how `many` they are."""
    return (
        " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if len(names) < MANY else f"{len(names)} {many}"
    )


def listed(values: Iterable[str]) -> str:
    """Values in a line, each once."""
    return "; ".join(dict.fromkeys(values)) or "-"
