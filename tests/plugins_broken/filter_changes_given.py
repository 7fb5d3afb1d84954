# Changes the analysis that it is given. | transform_analysis changes the analysis it is given
from pipeline.hooks import hookimpl


@hookimpl
def transform_analysis(analysis):
    analysis.extra["checked"] = True
