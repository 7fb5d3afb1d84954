// Runs once, when the database is made: the service's own account may read and write its database and nothing else.
db.getSiblingDB("pipeline").createUser({
  user: "pipeline",
  pwd: process.env.MONGO_PASSWORD,
  roles: [{ role: "readWrite", db: "pipeline" }],
});
