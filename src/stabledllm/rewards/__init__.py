"""What responses are worth: functions of the user's or of the rows' task, checked as they are called."""
