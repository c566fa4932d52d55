// OpenClaw looks for this module at the package's root.
export { legacyConfigRules, normalizeCompatibilityConfig } from "./dist/doctor.js";
