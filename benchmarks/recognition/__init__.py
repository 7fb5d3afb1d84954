"""Does the offline AI provider know how sure it is? Drawn pictures with known answers, and how often it is right."""
