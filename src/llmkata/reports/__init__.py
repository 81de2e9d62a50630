"""Views of records: scorecards, class page, grades.csv, and what the terminal shows. Import what you need:

:mod:`.site` writes a report folder; :mod:`.scorecard` makes one card; :mod:`.classpage` the page of a class;
:mod:`.grades` the CSV; :mod:`.terminal` tables and reports for a console; :mod:`.text` makes hostile text harmless.
"""
