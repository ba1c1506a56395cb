"""Great Expectations as the judge of flag columns.

Each code is one expectation on its own boolean column: no row may be flagged.  GX sees flags
and no student text, so none can enter its results or its Data Docs.  What counts is GX's own
verdict; a fault inside GX is a fault, never bad data.
"""

import importlib
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from gradelora.errors import CheckFailed
from gradelora.records.columns import Flags
from gradelora.validate.codes import Level

# BASIC with nothing listed: COMPLETE would copy failing values into stored results.
RESULT_FORMAT = {"result_format": "BASIC", "partial_unexpected_count": 0, "include_unexpected_rows": False}
_SITE = "data_docs"
_SEVERITY = {"error": "critical", "quarantine": "warning", "warning": "info"}


class Judge:
    """One ephemeral GX context for one validation; its Data Docs are built under `docs`.

    One context each: definitions shared among threads gave false passes.
    """

    def __init__(self, levels: dict[str, Level], docs: Path) -> None:
        os.environ["GX_ANALYTICS_ENABLED"] = "false"
        gx: Any = importlib.import_module("great_expectations")

        logging.getLogger("great_expectations").setLevel(logging.ERROR)
        self.gx = gx
        self.levels = levels
        self.context: Any = gx.get_context(mode="ephemeral")
        # Typed narrower than what its own schema loads.
        self.context.variables.progress_bars = {"globally": False}
        shutil.rmtree(docs, ignore_errors=True)
        site = {
            "class_name": "SiteBuilder",
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            # A page of a suite says nothing that the page of its result does not.
            "site_section_builders": {"expectations": "None", "profiling": "None"},
            "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs.absolute())},
        }
        self.context.add_data_docs_site(site_name=_SITE, site_config=site)
        self.source = self.context.data_sources.add_pandas("flags")

    def judge(self, name: str, flags: Flags) -> dict[str, int]:
        """Flagged rows of each code that GX finds failing on one table, in the flags' order.

        `flags` holds one bool[n] a code.  Raises CheckFailed where GX itself fails, or where
        its count is not that of the flags.
        """
        if not len(next(iter(flags.values()))):
            return {}
        definition = self._definition(name, flags)
        import pandas as pd

        frame = pd.DataFrame(flags, copy=False)
        try:
            result = definition.run(batch_parameters={"dataframe": frame}, result_format=RESULT_FORMAT)
        except Exception as error:
            kind = type(error).__name__
            fault = f"Great Expectations failed on the {name} table ({kind}): a fault, not bad data"
            raise CheckFailed(fault) from error
        return _verdict(name, flags, result)

    def _definition(self, name: str, flags: Flags) -> Any:
        """The suite of one table, one expectation a code, bound to its frame."""
        expectations = [
            self.gx.expectations.ExpectColumnValuesToBeInSet(
                column=code,
                value_set=[False],
                severity=_SEVERITY[self.levels[code]],
                meta={"level": self.levels[code]},
            )
            for code in flags
        ]
        suite = self.context.suites.add(self.gx.ExpectationSuite(name, expectations=expectations))
        batch = self.source.add_dataframe_asset(name).add_batch_definition_whole_dataframe(name)
        definition = self.gx.ValidationDefinition(name=name, data=batch, suite=suite)
        return self.context.validation_definitions.add(definition)

    def build_docs(self) -> None:
        """Data Docs of every table judged so far.  Raises CheckFailed where GX cannot build them."""
        try:
            self.context.build_data_docs(site_names=[_SITE])
        except Exception as error:
            raise CheckFailed(f"Great Expectations could not build its Data Docs ({type(error).__name__})") from error


def _verdict(name: str, flags: Flags, result: Any) -> dict[str, int]:
    """The failing codes of one validation result, with GX's counts."""
    failing: dict[str, int] = {}
    seen = set()
    for one in result.results:
        code = one.expectation_config.kwargs["column"]
        seen.add(code)
        if _raised(one.exception_info):
            raise CheckFailed(f"Great Expectations could not judge {code} on the {name} table: a fault, not bad data")
        counted = one.result.get("unexpected_count")
        if counted != int(flags[code].sum()) or one.success != (counted == 0):
            raise CheckFailed(f"Great Expectations judged {code} on the {name} table against its own flags")
        if not one.success:
            failing[code] = counted
    if seen != set(flags):
        raise CheckFailed(f"Great Expectations left out {sorted(set(flags) - seen)} on the {name} table")
    return {code: failing[code] for code in flags if code in failing}


def _raised(info: dict[str, Any]) -> bool:
    """Whether an expectation raised; its info is flat, or one entry a metric."""
    if "raised_exception" in info:
        return bool(info["raised_exception"])
    return any(entry.get("raised_exception") for entry in info.values())
