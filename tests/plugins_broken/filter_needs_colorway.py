# Assumes that every analysis has a colorway. | transform_analysis raised AttributeError
from dataclasses import replace

from pipeline.hooks import Attribute, hookimpl


@hookimpl
def transform_analysis(analysis):
    return replace(analysis, colorway=Attribute(analysis.colorway.value.title(), analysis.colorway.confidence))
