"""Builds panels, rows and variables of pages, with the settings that all our pages share.

In a query `@` stands for the matchers of the job and the instances chosen on the page, `@queue` also for the queue's.
"""

from __future__ import annotations

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
SERVICE = 'job=~"$job", instance=~"$instance"'
OF_QUEUE = SERVICE + ', queue=~"$queue"'
QUANTILES = ((0.5, "half"), (0.95, "95 %"), (0.99, "99 %"))

Panel = stat.Panel | timeseries.Panel | heatmap.Panel
Query = tuple[str, str]
Steps = tuple[tuple[float | None, str], ...]

PLAIN: Steps = ((None, "blue"),)
NONE_IS_GOOD: Steps = ((None, "green"), (1, "red"))
ALL_IS_GOOD: Steps = ((None, "red"), (1, "green"))


def at_least(value: float) -> Steps:
    """Return red below the value, green from there on."""
    return ((None, "red"), (value, "green"))


def rate(metric: str, by: str = "", where: str = "@", legend: str = "") -> Query:
    """Return the query of a counter's increase per second, over all processes.

    metric: the name without `pipeline_` and `_total`.
    by: the labels, separated by commas.
    where: the matchers.
    """
    return f"{_sum(by)}(rate(pipeline_{metric}_total{{{where}}}[$__rate_interval]))", legend or _legend(by)


def quantile(part: float, metric: str, by: str = "", where: str = "@", legend: str = "") -> Query:
    """Return the query of a histogram's quantile, over all processes; part: 0.95 for the 95th percentile."""
    buckets = f"{_sum(by, 'le')}(rate(pipeline_{metric}_bucket{{{where}}}[$__rate_interval]))"
    return f"histogram_quantile({part}, {buckets})", legend or _legend(by)


def quantiles(metric: str, where: str = "@") -> list[Query]:
    """Return the queries of the median, the 95th and the 99th percentile."""
    return [quantile(part, metric, where=where, legend=legend) for part, legend in QUANTILES]


def number(
    title: str, description: str, expr: str, *, unit: str = "short", width: int = 3, steps: Steps = PLAIN
) -> Panel:
    """Return a panel with the newest value of a query, in the colour of the step that it has reached."""
    thresholds = dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE)
    thresholds.steps([models.Threshold(value=value, color=color) for value, color in steps])
    panel = stat.Panel().title(title).description(description).datasource(SOURCE).span(width).height(4)
    panel.unit(unit).thresholds(thresholds).with_target(_target(expr))
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    return panel.color_mode(common_models.BigValueColorMode.VALUE)


def graph(title: str, description: str, *queries: Query, unit: str = "short", width: int = 8) -> Panel:
    """Return a panel with one line for each series of the queries."""
    panel = timeseries.Panel().title(title).description(description).datasource(SOURCE).span(width).height(8)
    panel.unit(unit).min(0).fill_opacity(8)
    panel.legend(common.VizLegendOptions().display_mode(common_models.LegendDisplayMode.LIST).show_legend(True))
    panel.tooltip(common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI))
    for letter, (expr, legend) in zip("ABCDEF", queries, strict=False):
        panel.with_target(_target(expr, letter).legend_format(legend))
    return panel


def heat(title: str, description: str, metric: str, where: str = "@") -> Panel:
    """Return a heat map of a histogram of seconds: the darker a cell, the more values are in it."""
    expr = f"sum by (le) (increase(pipeline_{metric}_bucket{{{where}}}[$__rate_interval]))"
    panel = heatmap.Panel().title(title).description(description).datasource(SOURCE).span(8).height(8)
    panel.y_axis(heatmap.YAxisConfig().unit("s")).color(heatmap.HeatmapColorOptions().scheme("Blues"))
    panel.with_target(_target(expr).format(PromQueryFormat.HEATMAP).legend_format("{{le}}"))
    return panel.unit("s").show_legend().show_tooltip()


def page(
    uid: str,
    title: str,
    description: str,
    rows: dict[str, list[Panel]],
    variables: dict[str, str],
    links: list[tuple[str, str]],
) -> models.Dashboard:
    """Return a page as Grafana reads it.

    rows: title -> panels, from left to right.
    variables: name -> the query of its values.
    links: uids and titles of the other pages.
    """
    board = dashboard.Dashboard(title).uid(uid).description(description).tags(["pipeline"]).readonly()
    board.time("now-1h", "now").refresh("30s").tooltip(models.DashboardCursorSync.CROSSHAIR).annotations([])
    board.with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    for name, query in variables.items():
        board.with_variable(_variable(name, query))
    for other, text in links:
        link = dashboard.DashboardLink(text).type(models.DashboardLinkType.LINK).url(f"/d/{other}")
        board.link(link.include_vars(True).keep_time(True))
    panel_id = 0
    for heading, panels in rows.items():
        board.with_row(dashboard.Row(heading).id(panel_id := panel_id + 1))
        for panel in panels:
            board.with_panel(panel.id(panel_id := panel_id + 1))
    return board.build()


def _target(expr: str, letter: str = "A") -> prometheus.Dataquery:
    expr = expr.replace("@queue", OF_QUEUE).replace("@", SERVICE)
    query = prometheus.Dataquery().expr(expr).ref_id(letter).datasource(SOURCE)
    # A query over the whole time shown has one value.
    return query.instant() if "$__range]" in expr else query.range()


def _variable(name: str, query: str) -> dashboard.QueryVariable:
    variable = dashboard.QueryVariable(name).label(name.title()).query(query).datasource(SOURCE)
    variable.multi(True).include_all(True).all_value(".+").sort(models.VariableSort.ALPHABETICAL_ASC)
    # Processes start and stop while a page is open.
    variable.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
    return variable.current(models.VariableOption(text="All", value="$__all", selected=True))


def _sum(*by: str) -> str:
    labels = ", ".join(filter(None, by))
    return f"sum by ({labels}) " if labels else "sum"


def _legend(by: str) -> str:
    return " ".join(f"{{{{{label}}}}}" for label in by.split(", ")) if by else ""
