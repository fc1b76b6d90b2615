"""The course: student, teacher, nbgrader and slide versions of the lessons."""
