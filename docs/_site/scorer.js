// How the search ranks what it finds. Sphinx's own numbers put every module above every other name, so that the class
// LockGuard came after twenty modules whose names begin with lockguard. Here the very name that was asked for comes first.
var Scorer = {
  objNameMatch: 30,
  objPartialMatch: 6,
  objPrio: { 0: 5, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
