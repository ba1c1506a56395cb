"""The rubric record: one student's answers, each scored against a rubric by a human.

source  which files                     parse     bytes to Python values, strictly
fast    the same where it is sure
stream  chunks of text                  locate    where a refused text is wrong
columns Python values to Arrow columns  identity  which question, which answer
split   which side an item is on        schema    the columns that are stored
"""

from gradelora.records.source import collect_data_files

__all__ = ["collect_data_files"]
