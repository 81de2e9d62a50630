"""What lies in the folder of a run (the ``--out`` of ``kata grade``)."""

#: The records, which are the truth, and the index rebuilt from them.
RECORDS = "records.jsonl"
GRADEBOOK = "gradebook.db"
#: The roster last given; extensions may be entered here.
ROSTER = "roster.csv"
#: The log of what staff changed: the truth of it, as the records are of results.
CHANGES = "changes.jsonl"
#: The pairs last computed, for staff.
SIMILARITY = "similarity.json"
#: Pages and tables, written again from the above.
INDEX = "index.html"
GRADES = "grades.csv"
CARDS = "learners"
#: Cards for staff, where grades are released by hand.
STAFF = "staff"
#: What was written for other systems, and the run under pseudonyms.
EXPORTS = "export"
PSEUDONYMOUS = "pseudonymous"
