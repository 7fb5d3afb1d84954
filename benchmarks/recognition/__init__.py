"""Are the confidences of the offline AI provider right? Drawn pictures with known answers, and its right answers."""
