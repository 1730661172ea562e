"""Runs queries over ODBC, as a spreadsheet does, and prints what came back as JSON: a list of rows, or the error, for each."""
import json
import sys

import pyodbc

asked = json.load(sys.stdin)
connection = pyodbc.connect(asked["connection"], autocommit=True, timeout=10)
answers = []
for query in asked["queries"]:
    cursor = connection.cursor()
    try:
        cursor.execute(query)
        answers.append({"rows": [[None if cell is None else str(cell) for cell in row] for row in cursor.fetchall()]})
    except pyodbc.Error as error:
        answers.append({"error": str(error.args[0]), "message": str(error.args[1])})
json.dump(answers, sys.stdout)
