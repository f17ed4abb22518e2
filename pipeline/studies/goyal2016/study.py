"""The study: its sections in the order of the paper."""

from pipeline.studies.base import Evidence, Study
from pipeline.studies.goyal2016 import cross_method, failure, table1, words
from pipeline.studies.goyal2016.published import GOYAL

SECTIONS = (table1.section, words.section, failure.section, cross_method.section)


def study(evidence: Evidence) -> Study:
    """Tables, figures and findings of Goyal et al. 2016 from one run."""
    sections = [section(evidence) for section in SECTIONS]
    return Study(
        name="goyal2016",
        title="Where models look and which words they hear",
        source=GOYAL,
        parts=tuple(part for section in sections for part in section.parts),
        findings=tuple(finding for section in sections for finding in section.findings),
        missing=tuple(reason for section in sections for reason in section.missing),
    )
