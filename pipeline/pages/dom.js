/** Elements without HTML: the same as of the component <photo-queue>. */

export { fill, h, icon } from "./client/photos/elements.js";
