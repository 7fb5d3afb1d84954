# Returns a dict instead of an Analysis. | transform_analysis returned dict, not Analysis
from pipeline.hooks import hookimpl


@hookimpl
def transform_analysis(analysis):
    return {"brand": analysis.brand}
