"""What people look at: the report, and a request from outside any data set."""
