"""Plans of small traces, run to the end."""

from tracelab import cells, engine, planning, registry


def plan_of(trace, name, parameters=(), **options):
    """Return the plan of an installed analysis."""
    analysis = registry.analysis(name)
    return planning.plan(analysis, trace, analysis.resolve(dict(parameters)), **options)


def together(plan, finished):
    """Return the blocks of a plan as one dataset, and the messages of all."""
    outputs = cells.unfilled(plan, plan.whole)
    messages = ()
    for block, part, failures in finished:
        cells.place(outputs, part, plan, block, plan.whole)
        messages += failures
    return cells.labelled(plan, outputs), messages


def computed(plan, trace, execution=None):
    """Return the result of a plan and the messages of its cells that failed."""
    return together(plan, engine.stream(plan, trace, execution or engine.Execution()))
